"""What lies between a denoiser's quantized layers, on our own kernels: attention and gates; and in their memory order.

diffusers lets every attention layer have a processor. Ours takes the default one's place and does what that does; for
whatever it does not know (masks, norms, gradients, other devices) it asks the one it replaced. Gates are modules, and
replaced as such, under the same names. Pictures stay channels-last, as convolutions read and write them. No weight is
touched.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixdq.runtime.kernels import native
from mixdq.runtime.kernels.between import attention, geglu

PROCESSOR, GATE, TRANSFORMER = "AttnProcessor2_0", "GEGLU", "Transformer2DModel"
"""diffusers' default processor and two of its modules; known by name, for this room does not import diffusers."""
OUTPUT = "_get_output_for_continuous_inputs"
"""The transformer's last step, from tokens to a picture. Where a diffusers has no such step, only the order differs."""


class CpuAttention:
    """A processor of diffusers' `Attention`: projections as they are, scores and sums by `mixdq::cpu_attention`.

    It also is of the class that it replaces, and as that one made of nothing: where diffusers exchanges some processors
    of a model (IP-Adapter), it makes the others anew by their classes.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Return the layer's output for `hidden_states` [batch, tokens, width], as diffusers' own processor does."""
        plain = attention_mask is None and not args and not kwargs and is_plain(attn)
        if not plain or hidden_states.dim() != 3 or not _is_ours(hidden_states):
            otherwise: Any = super()
            y: Tensor = otherwise.__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
            return y
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        y = attention(attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context), attn.heads)
        for module in attn.to_out:
            y = module(y)
        if attn.residual_connection:
            y = y + hidden_states
        return y if attn.rescale_output_factor == 1.0 else y / attn.rescale_output_factor

    def replaced(self) -> Any:
        """Return a processor of the class that this one replaced."""
        return type(self).__bases__[1]()

    def __reduce__(self) -> tuple[Any, ...]:
        return _instead_of, type(self).__bases__[1:]


# diffusers asks every layer's processor for its signature at every call, which takes longer than many a product.
CpuAttention.__call__.__signature__ = inspect.signature(CpuAttention.__call__)  # type: ignore[attr-defined]


class CpuGeglu(nn.Module):
    """A gated layer whose gate is one pass; `proj` is the projection to twice the width of the layer it replaces."""

    proj: nn.Module

    def __init__(self, otherwise: nn.Module) -> None:
        super().__init__()
        self.proj = otherwise.get_submodule("proj")
        # Without its projection, for whoever exchanges that must find it in one place. In a tuple, for it is no child.
        setattr(otherwise, "proj", None)  # noqa: B010  # nn.Module knows no such attribute
        self._otherwise = (otherwise,)

    def restored(self) -> nn.Module:
        """Return the layer that this one replaced, with the projection of now."""
        (otherwise,) = self._otherwise
        setattr(otherwise, "proj", self.proj)  # noqa: B010
        return otherwise

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the gated projection of `hidden_states` [..., width]; what else comes is ignored."""
        y: Tensor = self.proj(hidden_states)
        if _is_ours(y):
            return geglu(y)
        value, gate = y.chunk(2, dim=-1)
        return value * functional.gelu(gate)


class ChannelsLastOutput:
    """`OUTPUT` of a transformer without its change of the memory order, which all that follows would inherit."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    def __call__(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        """Return [batch, inner, height, width] of tokens [batch, height * width, inner], projected, plus `residual`."""
        projected_before = self.transformer.use_linear_projection
        if projected_before:
            hidden_states = self.transformer.proj_out(hidden_states)
        picture = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        y: Tensor = (picture if projected_before else self.transformer.proj_out(picture)) + residual
        return y


def use_cpu_kernels(denoiser: nn.Module) -> int:
    """Give attention layers with diffusers' default processor, and gates, our kernels; return how many there are.

    None where the kernels cannot be had; `mixdq doctor` says why.
    """
    if native.trouble() is not None:
        return 0
    for module in denoiser.modules():
        if type(module).__name__ == TRANSFORMER and hasattr(module, OUTPUT):
            setattr(module, OUTPUT, ChannelsLastOutput(module))
    return _exchange(
        denoiser,
        lambda processor: _instead_of(type(processor)) if type(processor).__name__ == PROCESSOR else None,
        lambda module: CpuGeglu(module) if type(module).__name__ == GATE else None,
    )


def remove_cpu_kernels(denoiser: nn.Module) -> int:
    """Undo `use_cpu_kernels`, and return how many were exchanged."""
    for module in denoiser.modules():
        if isinstance(vars(module).get(OUTPUT), ChannelsLastOutput):
            delattr(module, OUTPUT)
    return _exchange(
        denoiser,
        lambda processor: processor.replaced() if isinstance(processor, CpuAttention) else None,
        lambda module: module.restored() if isinstance(module, CpuGeglu) else None,
    )


def _instead_of(replaced: type) -> CpuAttention:
    return _kind(replaced)()


@cache
def _kind(replaced: type) -> type[CpuAttention]:
    return type(CpuAttention.__name__, (CpuAttention, replaced), {})


def _exchange(
    denoiser: nn.Module,
    processor_for: Callable[[Any], Any | None],
    module_for: Callable[[nn.Module], nn.Module | None],
) -> int:
    exchanged = 0
    for name, module in list(denoiser.named_modules()):
        processor, successor = processor_for(getattr(module, "processor", None)), module_for(module)
        if processor is not None:
            setattr(module, "processor", processor)  # noqa: B010  # nn.Module knows no such attribute
        if successor is not None:
            denoiser.set_submodule(name, successor.train(module.training))
        exchanged += (processor is not None) + (successor is not None)
    return exchanged


def is_plain(attn: Any) -> bool:
    """Return whether an attention layer has nothing between projections and scores."""
    others = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k")
    return all(getattr(attn, name, None) is None for name in others) and attn.inner_kv_dim == attn.inner_dim


def _is_ours(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in native.DTYPES and not torch.is_grad_enabled()
