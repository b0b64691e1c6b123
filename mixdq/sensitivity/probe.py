"""What one backward pass says of every layer at every width: inner products of its gradients with rounding errors.

For a vector v on the model's output f, to first order and for each row (picture) of a batch by itself,

    <v, f(W + dW) - f(W)>  =  <grad_W, dW>        <v, f(q(x)) - f(x)>  =  <grad_x, q(x) - x>

A layer's gradients are used as soon as they are there and then dropped: never those of two layers at once, and none is
ever stored in a parameter. Not here: which v, and what is made of the products (`sketch`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from mixdq.errors import ConfigError, NonFiniteError
from mixdq.quant.simulate import QuantizableLayer
from mixdq.quant.weights import fake_quantize_weight
from mixdq.types.layers import LayerSpec

KEPT_BYTES = 2**30
"""Weights' rounding errors are kept from one backward pass to the next while all of them take no more than this."""


class Probe:
    """One layer, the widths asked of its weight and input, and the products of the last backward pass.

    `quantizers` map each width of the input to what fake-quantizes it, in the order asked; where the layer is `bos`,
    its input is [rows, tokens, in] and token 0, which is not quantized, is left out.
    """

    def __init__(
        self,
        layer: LayerSpec,
        module: QuantizableLayer,
        weight_bits: Sequence[int],
        quantizers: Mapping[int, Callable[[Tensor], Tensor]],
        *,
        symmetric: bool = True,
        rounding: str = "nearest",
        keep: bool = False,
    ) -> None:
        self.layer, self.module = layer, module
        self.products: Tensor | None = None
        """[rows, weight widths + input widths] float64, summed over the layer's calls; None where no gradient came."""
        self._weight_bits, self._quantizers = tuple(weight_bits), quantizers
        self._symmetric, self._rounding = symmetric, rounding
        self._keep = keep
        self._kept: Tensor | None = None

    def take(self, x: Tensor, grad_output: Tensor, grad_input: Tensor) -> None:
        """Add the products of one call: its input, and the gradients to its output and input, all [rows, ...].

        Raises:
            NonFiniteError: a gradient holds NaN or infinity; names the layer.
        """
        if self.layer.bos:
            x, grad_output, grad_input = x[:, 1:], grad_output[:, 1:], grad_input[:, 1:]
        x, grad_output, grad_input = x.float(), grad_output.float(), grad_input.float()
        found = []
        if self._weight_bits:
            found.append(row_gradients(self.module, x, grad_output).flatten(1) @ self._weight_errors().T)
        for quantized in self._quantizers.values():
            found.append((grad_input * (quantized(x) - x)).flatten(1).sum(1, keepdim=True))
        products = torch.cat(found, dim=1).to("cpu", torch.float64)
        if not bool(torch.isfinite(products).all()):
            text = "the backward pass gives NaN or infinity; load the model in a wider dtype, or use method = 'exact'"
            raise NonFiniteError(f"{self.layer.name}: {text}", where=self.layer.name)
        self.products = products if self.products is None else self.products + products

    def _weight_errors(self) -> Tensor:
        """Return dW of every width, [widths, weight's elements] float32."""
        if self._kept is not None:
            return self._kept
        weight = self.module.weight.detach()
        errors = [
            # Rounded to the layer's dtype, as the simulated layer is.
            fake_quantize_weight(
                weight,
                num_bits,
                symmetric=self._symmetric,
                splits=self.layer.input_splits,
                rounding=self._rounding,
                name=self.layer.name,
            ).to(weight.dtype)
            - weight
            for num_bits in self._weight_bits
        ]
        found = torch.stack([error.float().flatten() for error in errors])
        if self._keep:
            self._kept = found
        return found


def row_gradients(module: QuantizableLayer, x: Tensor, grad_output: Tensor) -> Tensor:
    """Return the gradient to the weight of each row by itself, [rows, *weight's shape]; the rows' sum is the usual one.

    `x` and `grad_output` are the input and the output's gradient, [rows, ...] of one dtype.
    """
    if isinstance(module, nn.Linear):
        return torch.bmm(
            grad_output.reshape(len(x), -1, module.out_features).mT, x.reshape(len(x), -1, module.in_features)
        )
    rows = []
    for one, grad in zip(torch.split(x, 1), torch.split(grad_output, 1), strict=True):
        columns = unfold(_padded(module, one), module.kernel_size, module.dilation, stride=module.stride)
        # A group's output channels see the group's own input channels: [groups, out, pixels] x [groups, pixels, in].
        products = torch.bmm(
            grad.reshape(module.groups, -1, columns.shape[-1]),
            columns.reshape(module.groups, -1, columns.shape[-1]).mT,
        )
        rows.append(products.reshape(module.weight.shape))
    return torch.stack(rows)


@contextmanager
def probing(probes: Sequence[Probe], rows: int) -> Iterator[None]:
    """Let every backward pass through what is computed inside the block hand its gradients to the probes.

    `rows` is what each layer's input must have along its first axis.

    Raises:
        ConfigError: within the block, a layer's input has another number of rows.
    """
    # Anything that asks for a gradient makes autograd keep what it needs; parameters need not.
    anchor = torch.zeros((), requires_grad=True)
    with ExitStack() as stack:
        for probe in probes:
            before, after = _hooks(probe, anchor, rows)
            stack.callback(probe.module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(probe.module.register_forward_hook(after).remove)
        yield


class _Call:
    """One call of a layer on its way back: the output's gradient waits for the input's."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.grad_output: Tensor | None = None

    def take_output(self, grad: Tensor) -> None:
        self.grad_output = grad

    def take_input(self, x: Tensor, grad: Tensor) -> None:
        if self.grad_output is not None:
            self.probe.take(x, self.grad_output, grad)
        self.grad_output = None


class _Before(torch.autograd.Function):
    """Nothing, just before a layer; keeps the input as autograd does, so that checkpointing may make it again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _anchor: Tensor, call: _Call) -> Tensor:
        ctx.save_for_backward(x)
        ctx.call = call
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        ctx.call.take_input(x.detach(), grads[0])
        return grads[0], None, None


def _hooks(probe: Probe, anchor: Tensor, rows: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    calls: list[_Call] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0] if args else kwargs["input"]
        if x.shape[0] != rows:
            raise ConfigError(
                f"{probe.layer.name}: its input is {list(x.shape)}, expected {rows} rows, one a picture, to tell the "
                "pictures' gradients apart; set sensitivity.method = 'exact'"
            )
        calls.append(_Call(probe))
        watched = _Before.apply(x, anchor, calls[-1])  # type: ignore[no-untyped-call]
        return (watched, *args[1:]), {name: value for name, value in kwargs.items() if name != "input"}

    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        call = calls.pop()
        if output.requires_grad:
            output.register_hook(call.take_output)  # type: ignore[no-untyped-call]

    return before, after


def _padded(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the input with its border, whatever the border is made of."""
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return nn.functional.pad(x, padding, mode=mode)
