"""Integer products by `torch._int_mm`: cuBLAS's int8 product on a GPU, without Triton. Used only when named.

For cards and systems that have no Triton (Turing, Windows), and to compare with. All around the product is plain torch,
several passes over memory: windows of a convolution are copied out, weights below 8 bits are unpacked for every call.
Like `cuda` it never waits for the device: an input that holds NaN or infinity makes its row, or picture, NaN.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mixdq.quant.affine import quantize
from mixdq.quant.qparams import row_qparams
from mixdq.quant.weights import weight_codes
from mixdq.runtime.backends.reference import WeightOnly
from mixdq.runtime.kernel import Kernel, KernelRequest, int32_refusals
from mixdq.types.plan import FLOAT_BITS
from mixdq.types.tensors import QParams, QTensor

ALIGNMENT = 8
"""cuBLAS takes depths and widths that are multiples."""
LEAST_ROWS = 32
"""It takes more than 16 rows."""
LEAST_CAPABILITY = (7, 5)


@dataclass(frozen=True)
class IntMmBackend:
    """The epilogue rounds as the reference does, in the same order."""

    name: str = "int_mm"
    tolerance: float = 5 * 2.0**-24

    def refusals(self, request: KernelRequest) -> list[str]:
        """Return why not: another device, groups, weights that have no signed bytes, an old card."""
        if request.device not in ("cpu", "cuda"):
            return [f"torch._int_mm is there for CPUs and NVIDIA GPUs, not for {request.device}"]
        reasons = []
        if request.bits.weight == FLOAT_BITS:
            reasons.append("the weight is in floating point")
        reasons += int32_refusals(request)
        if request.bits.activation != FLOAT_BITS and request.groups != 1:
            reasons.append(f"a convolution of {request.groups} groups")
        if request.device == "cuda":
            if not torch.cuda.is_available():
                reasons.append("there is no NVIDIA GPU that PyTorch sees")
            elif torch.cuda.get_device_capability() < LEAST_CAPABILITY:
                reasons.append(f"int8 products need compute capability {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}")
        return reasons

    def bind(self, request: KernelRequest, weight: QTensor, bias: Tensor | None, activation: QParams | None) -> Kernel:
        """Return a kernel that keeps the codes packed."""
        if request.bits.activation == FLOAT_BITS:
            return WeightOnly(request, weight, bias)
        return _Product(request, weight, bias, activation)


@dataclass(frozen=True)
class _Product:
    request: KernelRequest
    weight: QTensor
    bias: Tensor | None
    activation: QParams | None

    def __call__(self, x: Tensor, /) -> Tensor:
        if self.request.op == "conv2d" and x.dim() == 3:
            return self(x[None])[0]
        axes = 1 if self.request.op == "linear" else 3
        activation = self.activation or row_qparams(x, self.request.bits.activation, axes=axes)
        assert activation.zero_point is not None
        zero = activation.zero_point.to(x.device)
        codes = quantize(x, activation)
        rows = codes if axes == 1 else self._windows(codes, zero)
        columns = self._columns()
        acc = _int_mm(rows.flatten(0, -2) if rows.dim() > 1 else rows[None], columns)
        acc = acc.reshape(*rows.shape[:-1], len(columns))
        spoilt = ~torch.isfinite(x).all(-1, keepdim=True) if axes == 1 else ~torch.isfinite(x).flatten(1).all(1)
        if axes == 3:
            spoilt, zero = (tensor.reshape(-1, 1, 1, 1) for tensor in (spoilt, zero))
        scale = activation.scale.to(x.device)
        scale = scale.reshape(-1, 1, 1, 1) if axes == 3 else scale
        acc = acc - zero * columns.sum(1, dtype=torch.int32)
        y = acc.to(torch.float32) * (self.weight.qparams.scale.reshape(-1) * scale)
        if self.bias is not None:
            y = y + self.bias.to(torch.float32)
        y = y.masked_fill(spoilt, torch.nan).to(self.request.output_dtype)
        return y if axes == 1 else y.permute(0, 3, 1, 2)

    def _columns(self) -> Tensor:
        """Return the weight's codes less its zero points, int8 [out, depth], depth in the order of `_windows`."""
        codes, zero_point = weight_codes(self.weight), self.weight.qparams.zero_point
        if zero_point is not None:
            codes = codes - zero_point.to(torch.int8)
        return codes.movedim(1, -1).flatten(1) if self.request.op == "conv2d" else codes

    def _windows(self, codes: Tensor, zero: Tensor) -> Tensor:
        """Return what each output sees, [batch, height, width, taps * channels]; borders are zero points."""
        request = self.request
        (above, beside), (down, right), (lines, pixels) = request.padding, request.stride, request.dilation
        batch, channels, height, width = codes.shape
        around = zero.to(torch.int8).reshape(-1, 1, 1, 1)
        padded = around.expand(batch, height + 2 * above, width + 2 * beside, channels).contiguous()
        padded[:, above : above + height, beside : beside + width] = codes.permute(0, 2, 3, 1)
        kernel = request.weight_shape[2:]
        size = [
            (padded.shape[1 + i] - request.dilation[i] * (kernel[i] - 1) - 1) // request.stride[i] + 1 for i in (0, 1)
        ]
        picture, line, pixel, one = padded.stride()
        strides = (picture, down * line, right * pixel, lines * line, pixels * pixel, one)
        return padded.as_strided((batch, *size, *kernel, channels), strides).flatten(3)


def _int_mm(rows: Tensor, columns: Tensor) -> Tensor:
    """Return rows [m, depth] times the transpose of columns [n, depth], int32 [m, n], filled up as cuBLAS wants it."""
    m, depth = rows.shape
    n = len(columns)
    deeper = -depth % ALIGNMENT
    rows = functional.pad(rows, (0, deeper, 0, max(0, LEAST_ROWS - m)))
    columns = functional.pad(columns, (0, deeper, 0, -n % ALIGNMENT))
    return torch._int_mm(rows.contiguous(), columns.contiguous().t())[:m, :n]
