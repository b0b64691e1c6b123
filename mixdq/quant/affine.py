"""Numbers to codes and back, by the one formula of the project: real = (code - zero_point) * scale.

Everything is computed in float32 whatever the dtype of the numbers, divides truly (never by a reciprocal), and rounds
half to even; a backend that wants the same codes bit for bit does the same. Where the grid is of E4M3 floats, a number
is rounded to the nearest of these, and the float that a code stands for is what is multiplied by the scale.

Not here: where scales come from (`qparams`).
"""

import torch
from torch import Tensor

from mixdq.quant import e4m3
from mixdq.types.tensors import QParams


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Return the codes of `x` as int8: round(x / scale) + zero_point, held within the grid.

    `qparams` broadcast to `x`. Infinities saturate; the code of NaN is undefined.

    >>> from mixdq.types.tensors import QuantSpec
    >>> eighth = QParams(scale=torch.tensor(0.125), zero_point=None, spec=QuantSpec(num_bits=4, symmetric=True))
    >>> quantize(torch.tensor([-9.0, 0.3, 0.5]), eighth).tolist()
    [-7, 2, 4]
    """
    qparams = _on(qparams, x.device)
    if qparams.spec.is_float:
        return e4m3.nearest_codes(_scaled(x, qparams))
    return _rounded(x, qparams).to(torch.int8)


def dequantize(codes: Tensor, qparams: QParams) -> Tensor:
    """Return the numbers that `codes` stand for, in float32."""
    numbers = e4m3.real(codes) if qparams.spec.is_float else codes.to(torch.float32, copy=True)
    return _real(numbers, _on(qparams, codes.device))


def fake_quantize(x: Tensor, qparams: QParams) -> Tensor:
    """Return `dequantize(quantize(x))` in the dtype of `x`, bit for bit, without making the codes.

    NaN stays NaN. In float16 the result saturates where a step beyond the range would overflow.
    """
    qparams = _on(qparams, x.device)
    real = _real(_rounded(x, qparams), qparams)
    if x.dtype == torch.float16:
        largest = torch.finfo(torch.float16).max
        real.clamp_(-largest, largest)
    return real.to(x.dtype)


def _on(qparams: QParams, device: torch.device) -> QParams:
    # A scale left on the CPU would make CUDA multiply by its reciprocal, which gives other codes near ties.
    if qparams.scale.device == device:
        return qparams
    zero_point = None if qparams.zero_point is None else qparams.zero_point.to(device)
    return QParams(scale=qparams.scale.to(device), zero_point=zero_point, spec=qparams.spec)


def _scaled(x: Tensor, qparams: QParams) -> Tensor:
    return torch.div(x.to(torch.float32), qparams.scale)


def _rounded(x: Tensor, qparams: QParams) -> Tensor:
    """Return the numbers of the grid nearest to `x`, in float32."""
    if qparams.spec.is_float:
        return e4m3.real(e4m3.nearest_codes(_scaled(x, qparams)))
    codes = _scaled(x, qparams).round_()
    if qparams.zero_point is not None:
        codes.add_(qparams.zero_point)
    return codes.clamp_(qparams.spec.code_min, qparams.spec.code_max)


def _real(numbers: Tensor, qparams: QParams) -> Tensor:
    if qparams.zero_point is not None:
        numbers.sub_(qparams.zero_point)
    # Adding zero turns the -0.0 that rounding leaves behind into the 0.0 that an integer code gives.
    return numbers.mul_(qparams.scale).add_(0.0)
