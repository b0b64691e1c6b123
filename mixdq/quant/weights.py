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
from mixdq.types.tensors import QParams, QTensor, QuantSpec


def quantize_weight(
    weight: Tensor,
    num_bits: int,
    *,
    symmetric: bool = True,
    splits: Sequence[int] = (),
    rounding: str = "nearest",
    name: str = "weight",
) -> tuple[QTensor, ...]:
    """Return a weight [out, in, ...] as quantized parts, one for each of `splits`, or one where it is empty.

    A scale for every output channel of every part, by min-max. Codes lie in the portable layout of `QTensor`, on the
    device of `weight`.

    Raises:
        NonFiniteError: the weight holds NaN or infinity; `name` says whose it is.
        ValueError: `splits` do not add up to the input channels, or nobody knows the rounding.
    """
    return tuple(
        QTensor(codes=_packed(codes, num_bits), qparams=qparams, shape=tuple(codes.shape))
        for codes, qparams in _quantized_parts(weight, num_bits, symmetric, splits, rounding, name)
    )


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
    splits: Sequence[int] = (),
    rounding: str = "nearest",
    name: str = "weight",
) -> Tensor:
    """Return `dequantize_weight(quantize_weight(...))` in float32, bit for bit, without packing anything."""
    parts = _quantized_parts(weight, num_bits, symmetric, splits, rounding, name)
    real = [dequantize(codes, qparams) for codes, qparams in parts]
    return real[0] if len(real) == 1 else torch.cat(real, dim=1)


def _quantized_parts(
    weight: Tensor, num_bits: int, symmetric: bool, splits: Sequence[int], rounding: str, name: str
) -> list[tuple[Tensor, QParams]]:
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding {rounding!r}: expected one of {sorted(ROUNDINGS)}")
    if splits and sum(splits) != weight.shape[1]:
        raise ValueError(f"{name}: parts {tuple(splits)} do not add up to {weight.shape[1]} input channels")
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0)
    weight = weight.detach()
    parts = torch.split(weight, list(splits), dim=1) if splits else (weight,)
    out = []
    for part in parts:
        qparams = weight_qparams(part, spec, name=name)
        out.append((ROUNDINGS[rounding](part, qparams), qparams))
    return out


def _packed(codes: Tensor, num_bits: int) -> Tensor:
    return codes.contiguous() if num_bits == 8 else pack(codes.flatten(1), num_bits)
