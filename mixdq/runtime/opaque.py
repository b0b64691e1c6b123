"""A quantized layer as one operator of torch: what `torch.compile` sees of it, whatever kernel runs it.

    mixdq::linear  x [..., in],                     layer -> [..., out], contiguous
    mixdq::conv2d  x [(batch,) in, height, width],  layer -> [(batch,) out, height, width], channels last
    mixdq::input_gradient  grad, of the output,     layer -> of the input, which has `shape`
    mixdq::folded_linear, mixdq::folded_conv2d  the same with what stands before a layer, and what is added after it
    mixdq::together  of several Linear layers that read one input, outputs side by side (`mixdq.runtime.together`)

`layer` is a handle, an int64 tensor on the CPU: operators take no objects, and a number would be a constant of the
compiled code, which the blocks of a model could then not share. Nothing of a layer is in that code, so kernels are
bound, checks raise and a loaded or moved layer is bound anew just as without it. Inputs have gradients, for adapters to
be trained beside and before a layer; they are the third operator's, and folded layers have none. Importing this module
registers all of them but the last.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mixdq.runtime.before import NOTHING, Before
from mixdq.runtime.folding import Layer, run_folded


class Runs(Layer, Protocol):
    """What a handle stands for."""

    def run(self, input: Tensor, /) -> Tensor:
        """Return the layer's output."""
        ...

    def input_gradient(self, grad: Tensor, shape: Sequence[int], /) -> Tensor:
        """Return the gradient by an input of `shape`, of the gradient by the output."""
        ...


_LIBRARY: Any = torch.library.Library("mixdq", "FRAGMENT")  # type: ignore[no-untyped-call]
# A graph that torch captures would call for ever the layer of the handle it was captured with.
_TAGS = tuple(filter(None, [getattr(torch.Tag, "cudagraph_unsafe", None)]))


def define(schema: str) -> None:
    """Declare an operator."""
    _LIBRARY.define(schema, tags=_TAGS)


define("linear(Tensor x, Tensor layer, SymInt out_features) -> Tensor")
define(
    "conv2d(Tensor x, Tensor layer, SymInt out_channels, int[] kernel, int[] stride, int[] borders, int[] dilation) "
    "-> Tensor"
)
BEFORE = "str kind, Tensor? weight, Tensor? bias, int groups, float eps, bool silu"
"""How operators are given a `Before`."""
define(f"folded_linear(Tensor x, Tensor layer, SymInt out_features, {BEFORE}, Tensor? added) -> Tensor")
define(
    "folded_conv2d(Tensor x, Tensor layer, SymInt out_channels, int[] kernel, int[] stride, int[] borders, "
    f"int[] dilation, {BEFORE}, Tensor? added) -> Tensor"
)
define("input_gradient(Tensor grad, Tensor layer, SymInt[] shape) -> Tensor")

_NUMBERS = itertools.count()
# A handle keeps nothing alive: compiled code holds the layer itself.
_LAYERS: WeakValueDictionary[int, Runs] = WeakValueDictionary()


def new_handle(layer: Runs) -> Tensor:
    """Return the handle of a layer; every layer, a copy too, needs one of its own."""
    number = next(_NUMBERS)
    _LAYERS[number] = layer
    return torch.tensor(number, dtype=torch.int64, device="cpu")


def linear(
    x: Tensor, layer: Tensor, out_features: int, before: Before = NOTHING, added: Tensor | None = None
) -> Tensor:
    """Return the output of the Linear layer that a handle stands for, for `before(x)`, plus `added`."""
    y: Tensor
    if before.is_nothing and added is None:
        y = torch.ops.mixdq.linear(x, layer, out_features)
    else:
        y = torch.ops.mixdq.folded_linear(x, layer, out_features, *before, added)
    return y


def conv2d(
    x: Tensor,
    layer: Tensor,
    out_channels: int,
    before: Before = NOTHING,
    added: Tensor | None = None,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    borders: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return the output of a Conv2d layer as `linear` does; `borders` are rows and columns added in all."""
    y: Tensor
    if before.is_nothing and added is None:
        y = torch.ops.mixdq.conv2d(x, layer, out_channels, kernel, stride, borders, dilation)
    else:
        y = torch.ops.mixdq.folded_conv2d(x, layer, out_channels, kernel, stride, borders, dilation, *before, added)
    return y


def layer_of(handle: Tensor) -> Runs:
    """Return what a handle stands for; raises RuntimeError where that is not in this process."""
    layer = _LAYERS.get(int(handle))
    if layer is None:
        raise RuntimeError(
            "This program calls a quantized layer that is not in this process: an exported program holds none. Save "
            "the model with save_pretrained, open it, and compile it where it runs."
        )
    return layer


def _run_linear(x: Tensor, layer: Tensor, out_features: int) -> Tensor:
    return layer_of(layer).run(x).contiguous()


def _run_conv2d(x: Tensor, layer: Tensor, *geometry: Any) -> Tensor:
    return _channels_last(layer_of(layer).run(x))


def _run_folded_linear(x: Tensor, layer: Tensor, out_features: int, *between: Any) -> Tensor:
    *before, added = between
    return run_folded(layer_of(layer), x, Before(*before), added).contiguous()


def _run_folded_conv2d(x: Tensor, layer: Tensor, *given: Any) -> Tensor:
    *before, added = given[len(given) - len(Before._fields) - 1 :]
    return _channels_last(run_folded(layer_of(layer), x, Before(*before), added))


def _channels_last(y: Tensor) -> Tensor:
    if y.dim() == 4:
        return y.contiguous(memory_format=torch.channels_last)
    return y.movedim(0, -1).contiguous().movedim(-1, 0)


def _run_gradient(grad: Tensor, layer: Tensor, shape: Sequence[int]) -> Tensor:
    return layer_of(layer).input_gradient(grad, shape).contiguous()


def _fake_gradient(grad: Tensor, layer: Tensor, shape: Sequence[int]) -> Tensor:
    return grad.new_empty(shape)


def _keep_handle(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, layer, *_ = inputs
    ctx.shape, ctx.others = x.shape, len(inputs) - 1
    ctx.save_for_backward(layer)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (layer,) = ctx.saved_tensors
    by_input = torch.ops.mixdq.input_gradient(grad, layer, ctx.shape)
    return (by_input, *(None,) * ctx.others)


def _fake_linear(x: Tensor, layer: Tensor, out_features: int, *between: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def _fake_conv2d(
    x: Tensor,
    layer: Tensor,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    borders: Sequence[int],
    dilation: Sequence[int],
    *between: Any,
) -> Tensor:
    size = [(x.shape[i - 2] + borders[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    return x.new_empty(*x.shape[:-3], *size, out_channels).movedim(-1, -3)


def register(name: str, run: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """Say what a declared operator does, and what an output it has."""
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mixdq::{name}", fake, lib=_LIBRARY)


register("linear", _run_linear, _fake_linear)
register("conv2d", _run_conv2d, _fake_conv2d)
register("folded_linear", _run_folded_linear, _fake_linear)
register("folded_conv2d", _run_folded_conv2d, _fake_conv2d)
register("input_gradient", _run_gradient, _fake_gradient)
for _operator in ("linear", "conv2d"):
    torch.library.register_autograd(f"mixdq::{_operator}", _backward, setup_context=_keep_handle, lib=_LIBRARY)
