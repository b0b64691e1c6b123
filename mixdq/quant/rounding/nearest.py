"""Rounding to the nearest code: no data, no memory of neighbouring errors."""

from torch import Tensor

from mixdq.quant.affine import quantize
from mixdq.types.tensors import QParams


def nearest(weight: Tensor, qparams: QParams) -> Tensor:
    """Return the int8 code nearest to each weight, halves to the even one."""
    return quantize(weight, qparams)
