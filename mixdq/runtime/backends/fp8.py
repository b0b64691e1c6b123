"""Products of E4M3 floats by `torch._scaled_mm`, for Linear layers ("W8A8 float"): cuBLAS and CUTLASS on a GPU.

Where Triton works, a kernel makes the input ready in one pass, what stands before the layer folded in, and nothing
waits for the device (`mixdq.runtime.kernels.gpu.floats`). Elsewhere inputs become codes by plain torch, in several
passes over memory, and first text tokens, which are computed around the product, wait.

Where PyTorch takes a scale for each row and column for the output's type, the product ends with these and the bias;
elsewhere float32 sums are scaled after it. What PyTorch takes, and gives, is tried once, on the least matrix there is.
An input that holds NaN or infinity makes its row NaN, so that no product waits for the device.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from mixdq.quant.affine import quantize
from mixdq.quant.qparams import row_qparams
from mixdq.quant.weights import weight_codes
from mixdq.runtime.backends.cuda import GpuProduct, layer_tensors
from mixdq.runtime.kernel import Kernel, KernelRequest, dtype_refusals
from mixdq.runtime.kernels.gpu import available
from mixdq.types.tensors import QParams, QTensor

ALIGNMENT = 16
"""The product takes depths and widths that are multiples."""
LEAST_CAPABILITY = (8, 9)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Fp8Backend:
    """Sums are float32 on the CPU, in an order of its own: off by 2^-24 a term.

    Hopper's units keep about 14 bits of a sum (arXiv 2412.19437, section 3.3.2), and move it to float32 every 128
    terms where fast accumulation is off, as here: 4 additions of 32 terms, each off by 2^-13 at most, then 2^-24.
    """

    name: str = "fp8"
    tolerance: float = 2.0**-10

    def refusals(self, request: KernelRequest) -> list[str]:
        """Return why not: integers, convolutions, another device or dtype, an old card or PyTorch."""
        if request.device not in ("cpu", "cuda"):
            return [f"torch._scaled_mm is there for CPUs and NVIDIA GPUs, not for {request.device}"]
        if not request.bits.is_float:
            return [f"it multiplies E4M3 floats (W8A8 float), and the layer is {request.bits}"]
        reasons = []
        if request.op != "linear":
            reasons.append("torch._scaled_mm multiplies matrices, it has no convolution")
        reasons += dtype_refusals(request, DTYPES)
        trouble = _trouble(request.device, torch.float32, by_rows=False)
        if trouble is not None:
            reasons.append(trouble)
        return reasons

    def bind(self, request: KernelRequest, weight: QTensor, bias: Tensor | None, activation: QParams | None) -> Kernel:
        """Return a kernel with the weight filled up to the product's alignment."""
        by_rows = _trouble(request.device, request.output_dtype, by_rows=True) is None
        if request.device != available.device_type() or available.trouble() is not None:
            return _Product(request, weight, bias, activation, by_rows)
        # Not where there is no Triton.
        from mixdq.runtime.kernels.gpu.floats import FloatLayer

        tensors, card = layer_tensors(request, weight, bias, activation), available.card(weight.codes.device)
        return GpuProduct(request, FloatLayer(tensors, dtype=request.output_dtype, card=card, by_rows=by_rows))


class _Product:
    """A layer in plain torch, whose weight it holds; `by_rows` says who scales: the product, or what follows it."""

    def __init__(
        self,
        request: KernelRequest,
        weight: QTensor,
        bias: Tensor | None,
        activation: QParams | None,
        by_rows: bool,
    ) -> None:
        self.request, self.activation = request, activation
        dtype = request.output_dtype
        self.by_rows = by_rows
        out, depth = weight.shape
        self.deeper, wider = -depth % ALIGNMENT, -out % ALIGNMENT
        codes = pad(weight_codes(weight), (0, self.deeper, 0, wider)).contiguous()
        # The second operand is to lie column by column.
        self.columns = codes.view(torch.float8_e4m3fn).t()
        self.scale = pad(weight.qparams.scale.reshape(1, -1), (0, wider), value=1.0).contiguous()
        self.one = torch.ones((), device=self.scale.device)
        added = dtype if self.by_rows else torch.float32
        self.bias = None if bias is None else pad(bias.detach().to(added), (0, wider))

    def portable_codes(self) -> Tensor:
        """Return the weight's codes as they were bound."""
        out, depth = self.request.weight_shape
        return self.columns.t().view(torch.int8)[:out, :depth].contiguous()

    def __call__(self, x: Tensor, /) -> Tensor:
        out = self.request.weight_shape[0]
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) == 0:
            return x.new_empty((*x.shape[:-1], out), dtype=self.request.output_dtype)
        activation = self.activation or row_qparams(rows, 8, axes=1, number="float")
        codes = quantize(rows, activation)
        codes = pad(codes, (0, self.deeper)) if self.deeper else codes.contiguous()
        y = self._multiply(codes.view(torch.float8_e4m3fn), activation.scale.to(x.device).reshape(-1, 1))
        y = y.masked_fill_(~torch.isfinite(rows).all(1, keepdim=True), torch.nan)
        return y[:, :out].to(self.request.output_dtype).reshape(*x.shape[:-1], out)

    def _multiply(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Return [rows, width] of codes [rows, depth] and their scale, [rows, 1] or [1, 1]."""
        if self.by_rows:
            scales = scale.expand(len(codes), 1).contiguous(), self.scale
            return torch._scaled_mm(codes, self.columns, *scales, bias=self.bias, out_dtype=self.request.output_dtype)
        y = torch._scaled_mm(codes, self.columns, self.one, self.one, out_dtype=torch.float32)
        y = y * (self.scale * scale)
        return y if self.bias is None else y + self.bias


@cache
def _trouble(device: str, output: torch.dtype, *, by_rows: bool) -> str | None:
    """Return what is wrong with PyTorch's product of the least size, or what it says; None where it computes it."""
    if device == "cuda":
        if not torch.cuda.is_available():
            return "there is no NVIDIA GPU that PyTorch sees"
        if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
            return f"FP8 products need compute capability {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}"
    ones = torch.ones(ALIGNMENT, ALIGNMENT, device=device)
    codes = ones.to(torch.float8_e4m3fn)
    scales = (ones[:, :1].contiguous(), ones[:1]) if by_rows else (ones[0, 0], ones[0, 0])
    try:
        for bias in (None, ones[0].to(output)) if by_rows else (None,):
            y = torch._scaled_mm(codes, codes.t(), *scales, bias=bias, out_dtype=output)
            # Versions that compute bfloat16 alone have given its bytes for float16's where there is no bias.
            if not bool((y == ALIGNMENT + (bias is not None)).all()):
                return f"PyTorch {torch.__version__} computes its product wrongly here"
    except (RuntimeError, ValueError) as error:
        return f"PyTorch {torch.__version__} refuses its product here: {str(error).splitlines()[0]}"
    return None
