"""Linear layers that read one input, called as one where their kernels can: queries, keys and values, say.

Their kernels are joined on the first such call and stay so until one of them is bound anew. Layers of which one is
joined with others already stay as they are: what a CUDA graph has captured must not move.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixdq.runtime.before import NOTHING, Before
from mixdq.runtime.folding import check_input, run_folded
from mixdq.runtime.kernel import FoldingKernel, JointKernel
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.opaque import BEFORE, define, layer_of, register


def together(layers: Sequence[QuantizedLinear], x: Tensor, before: Before = NOTHING) -> list[Tensor]:
    """Return `[layer(before(x)) for layer in layers]`, [..., out] each, without gradients."""
    if torch.compiler.is_compiling():
        widths = [layer.out_features for layer in layers]
        y: Tensor = torch.ops.mixdq.together(x, [layer.handle for layer in layers], widths, *before)
        return list(torch.split(y, widths, dim=-1))
    return run_together(layers, x, before)


def run_together(layers: Sequence[QuantizedLinear], x: Tensor, before: Before) -> list[Tensor]:
    """Return the same by the layers' kernels, bound to them."""
    outputs = run_joined(layers, x, before)
    if outputs is not None:
        return outputs
    if not all(isinstance(layer.kernel_for(x), FoldingKernel) for layer in layers):
        x, before = before(x, -1), NOTHING
    return [run_folded(layer, x, before, None) for layer in layers]


def run_joined(layers: Sequence[QuantizedLinear], x: Tensor, before: Before) -> list[Tensor] | None:
    """Return the same where the layers' kernels can be called as one; None, and nothing is computed, otherwise."""
    whole = _whole(layers, x, before)
    return None if whole is None else list(torch.split(whole, [layer.out_features for layer in layers], dim=-1))


def _whole(layers: Sequence[QuantizedLinear], x: Tensor, before: Before) -> Tensor | None:
    for layer in layers:
        check_input(layer, x, before)
    joint = _joint(layers, x)
    return None if joint is None or not joint.takes(x) else joint(x, before)


def _joint(layers: Sequence[QuantizedLinear], x: Tensor) -> JointKernel | None:
    # Whoever is elsewhere says so when it is called itself.
    if any(layer.weight.device != x.device for layer in layers):
        return None
    kernels = [kernel for kernel in (layer.joining(x) for layer in layers) if kernel is not None]
    if len(kernels) < max(2, len(layers)):
        return None
    joints = {id(kernel.joint): kernel.joint for kernel in kernels}
    if len(joints) > 1:
        return None
    (joint,) = joints.values()
    if joint is not None:
        own = len(joint) == len(kernels) and all(kernel.place == place for place, kernel in enumerate(kernels))
        return joint if own else None
    joined = kernels[0].join(kernels[1:], [layer.bos_row() for layer in layers])
    if joined is None:
        return None
    for layer, kernel in zip(layers, joined, strict=True):
        layer.take(kernel)
    return joined[0].joint


def _run_operator(x: Tensor, layers: Sequence[Tensor], widths: Sequence[int], *before: Any) -> Tensor:
    own = []
    for handle in layers:
        layer = layer_of(handle)
        assert isinstance(layer, QuantizedLinear)
        own.append(layer)
    whole = _whole(own, x, Before(*before))
    return torch.cat(run_together(own, x, Before(*before)), dim=-1) if whole is None else whole


def _fake_operator(x: Tensor, layers: Sequence[Tensor], widths: Sequence[int], *before: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], sum(widths))


define(f"together(Tensor x, Tensor[] layers, SymInt[] widths, {BEFORE}) -> Tensor")
register("together", _run_operator, _fake_operator)
