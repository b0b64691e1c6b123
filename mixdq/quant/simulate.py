"""A layer that computes as if it were quantized, for as long as a `with` block lasts.

The weight is swapped for its fake-quantized copy and the input is fake-quantized on its way in; the product is a float
one, equal to the integer path up to float rounding. With quantized inputs it is computed in float32, as kernels'
epilogues are; with a quantized weight alone, in the layer's own dtype, as dequantizing kernels do. The layer is
borrowed: the very same parameter objects and the same `forward` are put back, whatever happens.

Not here: replacing a layer for good (`mixdq.conversion`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from mixdq.quant.affine import fake_quantize
from mixdq.quant.bos import BosRow, with_bos_row
from mixdq.quant.qparams import activation_qparams, row_qparams
from mixdq.quant.weights import fake_quantize_weight
from mixdq.types.plan import FLOAT_BITS, LayerBits, Number
from mixdq.types.tensors import ActivationRange, QParams

QuantizableLayer = nn.Linear | nn.Conv2d


@contextmanager
def simulated_layer(
    module: QuantizableLayer,
    bits: LayerBits,
    *,
    ranges: Sequence[ActivationRange] = (),
    symmetric: bool = True,
    splits: Sequence[int] = (),
    bos: BosRow | None = None,
    rounding: str = "nearest",
    dynamic: bool = False,
    name: str = "layer",
) -> Iterator[None]:
    """Let a layer compute as if quantized to `bits`, and put it back as it was at the end.

    `ranges` has one range for each part of the input (one where `splits` is empty); it is not read where activations
    stay in floating point, or are `dynamic`: then each row of each part (a linear's token, a conv2d's picture) has the
    scale of its own numbers. Parts are channels of a conv2d's input, the last axis of a linear's. With `bos` the input
    is [batch, tokens, in], token 0's output comes from the stored row, and only tokens 1.. are quantized. At W16A16
    nothing happens. One simulation of a layer at a time.

    Raises:
        NonFiniteError: the weight, or a first text token, holds NaN or infinity.
        BosNotConstantError: within the block, the first text token is not the stored one.
        ValueError: parts and ranges do not fit the layer, or a convolution is to have floats.
    """
    if bits.is_float and not isinstance(module, nn.Linear):
        raise ValueError(f"{name}: {bits} is for Linear layers; a Conv2d takes W8A8")
    changed: dict[str, nn.Parameter] = {}
    quantized_input = bits.activation != FLOAT_BITS
    dtype = torch.float32 if quantized_input else module.weight.dtype
    if bits.weight != FLOAT_BITS:
        fake = fake_quantize_weight(
            module.weight,
            bits.weight,
            symmetric=symmetric,
            number=bits.number,
            splits=splits,
            rounding=rounding,
            name=name,
        )
        changed["weight"] = nn.Parameter(fake.to(dtype), requires_grad=False)
    if quantized_input:
        for key in ("weight", "bias"):
            parameter = getattr(module, key)
            if key not in changed and parameter is not None and parameter.dtype != dtype:
                changed[key] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    compute: Callable[[Tensor], Tensor] = module.forward
    if quantized_input:
        quantized = input_quantizer(
            module, bits.activation, number=bits.number, ranges=ranges, splits=splits, dynamic=dynamic, name=name
        )
        compute = _on_quantized_input(compute, quantized)
    if bos is not None and bits != LayerBits(weight=FLOAT_BITS, activation=FLOAT_BITS):
        compute = _beside_bos_row(compute, bos, module.bias, name)
    with _borrowed(module, changed, compute):
        yield


def input_quantizer(
    module: QuantizableLayer,
    num_bits: int,
    *,
    number: Number = "int",
    ranges: Sequence[ActivationRange] = (),
    splits: Sequence[int] = (),
    dynamic: bool = False,
    name: str = "layer",
) -> Callable[[Tensor], Tensor]:
    """Return what fake-quantizes a float32 input of the layer; arguments and errors as in `simulated_layer`."""
    if dynamic:
        return _fake_rows(module, num_bits, number, splits, name)
    return partial(fake_quantize, qparams=_input_qparams(module, ranges, num_bits, number, splits, name))


@contextmanager
def _borrowed(
    module: nn.Module, changed: dict[str, nn.Parameter], forward: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    kept = {key: getattr(module, key) for key in changed}
    # An own `forward` is there already where a hook library (accelerate, say) has wrapped the layer.
    own_forward = vars(module).get("forward")
    try:
        for key, parameter in changed.items():
            setattr(module, key, parameter)
        if forward != module.forward:
            vars(module)["forward"] = forward
        yield
    finally:
        for key, parameter in kept.items():
            setattr(module, key, parameter)
        if own_forward is not None:
            vars(module)["forward"] = own_forward
        else:
            vars(module).pop("forward", None)


def _on_quantized_input(
    compute: Callable[[Tensor], Tensor], quantized: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor) -> Tensor:
        return compute(quantized(input.to(torch.float32))).to(input.dtype)

    return forward


def _fake_rows(
    module: QuantizableLayer, num_bits: int, number: Number, splits: Sequence[int], name: str
) -> Callable[[Tensor], Tensor]:
    """Return what fake-quantizes an input, each row of each part by its own numbers."""
    axes, parts = 1 if isinstance(module, nn.Linear) else 3, _parts(module, splits, name)

    def quantized(input: Tensor) -> Tensor:
        each = [
            fake_quantize(part, row_qparams(part, num_bits, axes=axes, number=number))
            for part in torch.split(input, parts, dim=-axes)
        ]
        return torch.cat(each, dim=-axes)

    return quantized


def _beside_bos_row(
    compute: Callable[[Tensor], Tensor], bos: BosRow, bias: Tensor | None, name: str
) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor) -> Tensor:
        return with_bos_row(input, bos, bias, compute, name=name)

    return forward


def _input_qparams(
    module: QuantizableLayer,
    ranges: Sequence[ActivationRange],
    num_bits: int,
    number: Number,
    splits: Sequence[int],
    name: str,
) -> QParams:
    """Return the input's scale and zero point; for a joined input, each part's repeated over its channels."""
    if len(ranges) != max(1, len(splits)):
        raise ValueError(f"{name}: {len(ranges)} ranges for {max(1, len(splits))} input parts")
    device = module.weight.device
    parts = [activation_qparams(rng, num_bits, number) for rng in ranges]
    scale = torch.stack([part.scale for part in parts])
    zero_points = [part.zero_point for part in parts if part.zero_point is not None]
    zero_point = torch.stack(zero_points) if zero_points else None
    if splits:
        repeats = torch.tensor(_parts(module, splits, name))
        shape = (-1,) if isinstance(module, nn.Linear) else (-1, 1, 1)
        scale = scale.repeat_interleave(repeats).reshape(shape)
        zero_point = None if zero_point is None else zero_point.repeat_interleave(repeats).reshape(shape)
    return QParams(
        scale=scale.to(device), zero_point=None if zero_point is None else zero_point.to(device), spec=parts[0].spec
    )


def _parts(module: QuantizableLayer, splits: Sequence[int], name: str) -> list[int]:
    """Return the input channels of each part."""
    channels = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    if splits and sum(splits) != channels:
        raise ValueError(f"{name}: parts {tuple(splits)} do not add up to {channels} input channels")
    return list(splits) or [channels]
