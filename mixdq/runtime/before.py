"""What stands before a layer in a block and can be folded into it: a norm or a gate, then SiLU or nothing.

Here in plain torch, as the blocks compute it themselves; a kernel that folds it in gives the same up to a norm's last
bit (`mixdq.runtime.kernels.gpu.activations`).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["", "group_norm", "affine", "layer_norm", "geglu"]


class Before(NamedTuple):
    """A norm of a module's `weight` and `bias`, or a gate; `groups` are a group norm's.

    A group norm is "affine" once its moments are known: float32 `weight` and `bias` [batch, channels], see `norms`.
    """

    kind: Kind = ""
    weight: Tensor | None = None
    bias: Tensor | None = None
    groups: int = 1
    eps: float = 0.0
    silu: bool = False

    def __call__(self, x: Tensor, channel_axis: int) -> Tensor:
        """Return what the layer is given; `x` is [..., channels], or [batch, channels, height, width] for an axis -3.

        A group norm of [batch, tokens, channels] takes the tokens of one text or picture together.
        """
        if self.kind == "group_norm":
            last = channel_axis == -1
            x = functional.group_norm(x.mT if last else x, self.groups, self.weight, self.bias, self.eps)
            x = x.mT if last else x
        elif self.kind == "affine" and self.weight is not None and self.bias is not None:
            weight, bias = (
                each[:, None] if channel_axis == -1 else each[..., None, None] for each in (self.weight, self.bias)
            )
            x = (x * weight + bias).to(x.dtype).view(x.shape)
        elif self.kind == "layer_norm":
            x = functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        elif self.kind == "geglu":
            value, gate = x.chunk(2, dim=channel_axis)
            x = value * functional.gelu(gate)
        return functional.silu(x) if self.silu else x

    @property
    def is_nothing(self) -> bool:
        """Whether nothing stands there."""
        return not (self.kind or self.silu)

    def narrowed(self, channels: int) -> int:
        """Return how many of so many channels are left for the layer."""
        return channels // 2 if self.kind == "geglu" else channels

    def of_parts(self, splits: Sequence[int]) -> list[Self]:
        """Return what stands before each part of the channels, where that is nothing or affine, with SiLU or not."""
        if self.weight is None or self.bias is None:
            return [self] * len(splits)
        parts = zip(*(torch.split(each, list(splits), dim=-1) for each in (self.weight, self.bias)), strict=True)
        return [self._replace(weight=weight, bias=bias) for weight, bias in parts]


NOTHING = Before()
SILU = Before(silu=True)
GEGLU = Before(kind="geglu")


def group_norm(norm: nn.GroupNorm, *, silu: bool) -> Before:
    """Return a group norm, and SiLU if asked for, as what stands before a layer."""
    return Before("group_norm", norm.weight, norm.bias, norm.num_groups, norm.eps, silu)


def layer_norm(norm: nn.LayerNorm) -> Before:
    """Return a layer norm of the last axis as what stands before a layer."""
    return Before("layer_norm", norm.weight, norm.bias, 1, norm.eps)
