"""The slow backend that defines what is right: exact integers in plain torch, on any device that has float64.

    y = scale_w * scale_x * (acc - z_x * sum_w) + bias

The bracket is sum (x_q - z_x) (w_q - z_w), computed as it stands on integers held in float64: sums stay exact up to
2^53, far beyond what 8-bit codes reach. E4M3 floats take the integers' place: their products are multiples of 2^-18
below 2^18, so that sums of 2^17 of them are exact too. Borders are padded after z_x is taken off, so they are real
zeros. Where the input is dynamic, scale_x and z_x are each row's (a linear's token, a conv2d's picture) own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from mixdq.errors import NonFiniteError
from mixdq.quant import e4m3
from mixdq.quant.affine import quantize
from mixdq.quant.qparams import row_qparams
from mixdq.quant.weights import dequantize_weight, weight_codes
from mixdq.runtime.kernel import Kernel, KernelRequest
from mixdq.types.plan import FLOAT_BITS
from mixdq.types.tensors import QParams, QTensor


@dataclass(frozen=True)
class ReferenceBackend:
    """Plain torch, used only when named.

    The epilogue rounds five times at most (accumulator, scale product, product, sum of two): 5 half ulps of float32.
    """

    name: str = "reference"
    tolerance: float = 5 * 2.0**-24

    def refusals(self, request: KernelRequest) -> list[str]:
        """Return why not; only floating-point weights and devices without float64 are refused."""
        reasons = []
        if request.bits.weight == FLOAT_BITS:
            reasons.append("the weight is in floating point")
        if request.device == "mps":
            reasons.append("mps has no float64, which holds the exact sums")
        return reasons

    def bind(self, request: KernelRequest, weight: QTensor, bias: Tensor | None, activation: QParams | None) -> Kernel:
        """Return a kernel that keeps the codes packed and unpacks them on every call."""
        if request.dynamic:
            bits, axes = request.bits, 1 if request.op == "linear" else 3
            made = partial(row_qparams, num_bits=bits.activation, axes=axes, number=bits.number)
            return _Exact(request, weight, bias, made)
        if activation is None:
            return WeightOnly(request, weight, bias)
        return _Exact(request, weight, bias, lambda _: activation)


def integer_product(x: Tensor, weight: Tensor, request: KernelRequest) -> Tensor:
    """Return the exact product of two float64 tensors of integers, or of E4M3 floats, as float64.

    `x` is [..., in] or [(batch,) in, height, width] with its zero point taken off, so that borders are zeros.
    """
    if request.op == "linear":
        return functional.linear(x, weight)
    y = functional.conv2d(x, weight, None, request.stride, request.padding, request.dilation, request.groups)
    # A library may go through Fourier transforms, whose sums are whole but for some 1e-10. Convolutions have no floats.
    return y.round()


@dataclass(frozen=True)
class _Exact:
    request: KernelRequest
    weight: QTensor
    bias: Tensor | None
    qparams_of: Callable[[Tensor], QParams]

    def __call__(self, x: Tensor, /) -> Tensor:
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError(
                f"{self.request.layer}: its input holds NaN or infinity, which no code can stand for.",
                where=self.request.layer,
            )
        activation = self.qparams_of(x)
        x_codes = _centred(quantize(x, activation), activation)
        w_codes = _centred(weight_codes(self.weight), self.weight.qparams)
        accumulator = integer_product(x_codes, w_codes, self.request).to(torch.float32)
        y = accumulator * (_per_channel(self.weight.qparams.scale.reshape(-1), self.request) * activation.scale)
        if self.bias is not None:
            y = y + _per_channel(self.bias.to(torch.float32), self.request)
        return y.to(self.request.output_dtype)


@dataclass(frozen=True)
class WeightOnly:
    """The float product with the dequantized weight: any backend's answer where it has nothing better."""

    request: KernelRequest
    weight: QTensor
    bias: Tensor | None

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return the product in the request's output dtype."""
        request = self.request
        weight = dequantize_weight((self.weight,)).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if request.op == "linear":
            y = functional.linear(x, weight, bias)
        else:
            y = functional.conv2d(x, weight, bias, request.stride, request.padding, request.dilation, request.groups)
        return y.to(request.output_dtype)


def _centred(codes: Tensor, qparams: QParams) -> Tensor:
    if qparams.spec.is_float:
        return e4m3.real(codes).to(torch.float64)
    centred = codes.to(torch.float64)
    return centred if qparams.zero_point is None else centred - qparams.zero_point


def _per_channel(values: Tensor, request: KernelRequest) -> Tensor:
    return values if request.op == "linear" else values.view(-1, 1, 1)
