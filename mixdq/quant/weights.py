"""A layer's weight as quantized parts, and back.

A layer whose input joins two tensors of different ranges (arXiv 2405.17873, skip joins) has one part for each: a slice
of its input channels (axis 1) with scales of its own. Every other layer has one part. Not here: activations.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mixdq.quant.affine import dequantize
from mixdq.quant.packing import pack, unpack
from mixdq.quant.qparams import weight_qparams
from mixdq.quant.rounding import ROUNDINGS
from mixdq.types.plan import Number
from mixdq.types.tensors import QParams, QTensor, QuantSpec

WEIGHTS_AT_ONCE = 2**20
"""A weight is quantized some output channels at a time: float32 copies of all would be several times its own size."""


def quantize_weight(
    weight: Tensor,
    num_bits: int,
    *,
    symmetric: bool = True,
    number: Number = "int",
    splits: Sequence[int] = (),
    rounding: str = "nearest",
    name: str = "weight",
) -> tuple[QTensor, ...]:
    """Return a weight [out, in, ...] as quantized parts, one for each of `splits`, or one where it is empty.

    A scale for every output channel of every part, by min-max. Floats are symmetric whatever is asked. Codes lie in the
    portable layout of `QTensor`, on the device of `weight`.

    Raises:
        NonFiniteError: the weight holds NaN or infinity; `name` says whose it is.
        ValueError: `splits` do not add up to the input channels, or nobody knows the rounding.
    """
    rows = max(1, WEIGHTS_AT_ONCE // max(1, math.prod(weight.shape[1:])))
    slices = [
        [
            QTensor(codes=_packed(codes, num_bits), qparams=qparams, shape=tuple(codes.shape))
            for codes, qparams in _quantized_parts(some, num_bits, symmetric, number, splits, rounding, name)
        ]
        for some in torch.split(weight, rows)
    ]
    return tuple(_stacked(parts) for parts in zip(*slices, strict=True))


def weight_codes(part: QTensor) -> Tensor:
    """Return the codes of one part as int8 of its real shape."""
    num_bits = part.qparams.spec.num_bits
    if num_bits == 8:
        return part.codes.reshape(part.shape)
    return unpack(part.codes, num_bits, math.prod(part.shape[1:])).reshape(part.shape)


def dequantize_weight(parts: Sequence[QTensor]) -> Tensor:
    """Return the whole weight [out, in, ...] in float32, its parts joined along the input channels."""
    real = [dequantize(weight_codes(part), part.qparams) for part in parts]
    return real[0] if len(real) == 1 else torch.cat(real, dim=1)


def fake_quantize_weight(
    weight: Tensor,
    num_bits: int,
    *,
    symmetric: bool = True,
    number: Number = "int",
    splits: Sequence[int] = (),
    rounding: str = "nearest",
    name: str = "weight",
) -> Tensor:
    """Return `dequantize_weight(quantize_weight(...))` in float32, bit for bit, without packing anything."""
    parts = _quantized_parts(weight, num_bits, symmetric, number, splits, rounding, name)
    real = [dequantize(codes, qparams) for codes, qparams in parts]
    return real[0] if len(real) == 1 else torch.cat(real, dim=1)


def _quantized_parts(
    weight: Tensor,
    num_bits: int,
    symmetric: bool,
    number: Number,
    splits: Sequence[int],
    rounding: str,
    name: str,
) -> list[tuple[Tensor, QParams]]:
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding {rounding!r}: expected one of {sorted(ROUNDINGS)}")
    if splits and sum(splits) != weight.shape[1]:
        raise ValueError(f"{name}: parts {tuple(splits)} do not add up to {weight.shape[1]} input channels")
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric or number == "float", channel_axis=0, number=number)
    weight = weight.detach()
    parts = torch.split(weight, list(splits), dim=1) if splits else (weight,)
    out = []
    for part in parts:
        qparams = weight_qparams(part, spec, name=name)
        out.append((ROUNDINGS[rounding](part, qparams), qparams))
    return out


def _packed(codes: Tensor, num_bits: int) -> Tensor:
    return codes.contiguous() if num_bits == 8 else pack(codes.flatten(1), num_bits)


def _stacked(slices: Sequence[QTensor]) -> QTensor:
    """Return the part whose output channels are those of the slices, in order."""
    if len(slices) == 1:
        return slices[0]
    first = slices[0].qparams
    zero_points = [each.qparams.zero_point for each in slices if each.qparams.zero_point is not None]
    qparams = QParams(
        scale=torch.cat([each.qparams.scale for each in slices]),
        zero_point=torch.cat(zero_points) if zero_points else None,
        spec=first.spec,
    )
    shape = (sum(each.shape[0] for each in slices), *slices[0].shape[1:])
    return QTensor(codes=torch.cat([each.codes for each in slices]), qparams=qparams, shape=shape)
