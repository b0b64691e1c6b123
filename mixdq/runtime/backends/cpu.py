"""Integer products on the CPU, by the compiled kernels of `mixdq.runtime.kernels.native`.

An activation becomes unsigned bytes (its code plus 128) in one pass, which also pads a convolution's borders with the
zero point's code; a pass before it finds the scales of dynamic rows. Where only the weight is quantized, an activation
becomes float32. The product runs on weights in panels, 8 bits as they are and fewer as packed streams, and ends with
zero point, scale and bias in the same pass. Sums of codes are int32 and exact; sums of floats are float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mixdq.runtime.kernel import Kernel, KernelRequest, dtype_refusals, int32_refusals
from mixdq.runtime.kernels import native
from mixdq.runtime.kernels.layers import PANEL, LayerTensors, NativeLayer, Window, filled
from mixdq.types.plan import FLOAT_BITS
from mixdq.types.tensors import QParams, QTensor, QuantSpec


@dataclass(frozen=True)
class CpuBackend:
    """Compiled on first use. The epilogue rounds as the reference does, in the same order."""

    name: str = "cpu"
    tolerance: float = 5 * 2.0**-24

    def refusals(self, request: KernelRequest) -> list[str]:
        """Return why not: another device or dtype, 8-bit weights with zero points, no compiler."""
        reasons = []
        if request.device != "cpu":
            return [f"it computes on the CPU, not on {request.device}"]
        if request.bits.weight == FLOAT_BITS:
            return ["the weight is in floating point"]
        reasons += dtype_refusals(request, native.DTYPES)
        reasons += int32_refusals(request)
        trouble = native.trouble()
        if trouble is not None:
            reasons.append(trouble)
        return reasons

    def bind(self, request: KernelRequest, weight: QTensor, bias: Tensor | None, activation: QParams | None) -> Kernel:
        """Return a kernel with the weight in panels."""
        return _Product(request, weight, bias, activation)


class _Product:
    """A layer of the compiled library, which holds the weight in panels."""

    def __init__(
        self, request: KernelRequest, weight: QTensor, bias: Tensor | None, activation: QParams | None
    ) -> None:
        self.request = request
        self.layer = NativeLayer(
            _tensors(request, weight, bias, activation),
            name=request.layer,
            channels=weight.shape[1] * request.groups,
            dtype=request.output_dtype,
            groups=request.groups,
            window=None if request.op == "linear" else _window(request),
        )
        self._run = self.layer.linear if request.op == "linear" else self.layer.conv2d

    def portable_codes(self) -> Tensor:
        """Return the weight's codes as they were bound."""
        shape, num_bits, groups = self.request.weight_shape, self.request.bits.weight, self.request.groups
        depth, taps = filled(shape[1]), torch.Size(shape[2:]).numel()
        packed = self.layer.tensors.panels
        panels = native.unpack(packed, num_bits, taps * depth * PANEL).view(torch.int32)
        columns = panels.reshape(len(packed), -1, PANEL).transpose(1, 2).flatten().view(torch.int8)
        columns = columns.reshape(groups, -1, taps, depth)[:, : shape[0] // groups, :, : shape[1]]
        codes = columns.transpose(2, 3).reshape(shape).contiguous()
        return codes if num_bits == 8 else native.pack(codes.flatten(1), num_bits)

    def __call__(self, x: Tensor, /) -> Tensor:
        return self._run(x)


def _window(request: KernelRequest) -> Window:
    kernel = request.weight_shape[2:]
    return Window(kernel=kernel, stride=request.stride, padding=request.padding, dilation=request.dilation)


def _tensors(request: KernelRequest, weight: QTensor, bias: Tensor | None, activation: QParams | None) -> LayerTensors:
    groups, num_bits = request.groups, request.bits.weight
    codes = native.unpack(weight.codes, num_bits, torch.Size(weight.shape[1:]).numel())
    codes = codes.reshape(groups, -1, weight.shape[1], torch.Size(weight.shape[2:]).numel())
    offsets = weight.qparams.zero_point
    columns = None if offsets is None else offsets.to(torch.int8).reshape(groups, -1)
    sums = native.row_sums(codes.flatten(0, 1).flatten(1))
    if columns is not None:
        sums = sums - codes.shape[2:].numel() * columns.to(torch.int32).reshape(-1)
    input_scale, input_zero_point, low, high = _input(request, activation)
    return LayerTensors(
        panels=_panels(codes, columns, num_bits),
        zero_points=None if columns is None else pad(columns, (0, -columns.shape[1] % PANEL)).reshape(-1),
        sums=sums,
        scale=_product_scale(weight.qparams, activation),
        bias=None if bias is None else bias.detach().to(torch.float32).contiguous(),
        input_scale=input_scale,
        input_zero_point=input_zero_point,
        num_bits=num_bits,
        low=low,
        high=high,
    )


def _product_scale(weight: QParams, activation: QParams | None) -> Tensor:
    scale = weight.scale.reshape(-1)
    # One part's scales are a column of the layer's.
    return (scale if activation is None else scale * activation.scale).to(torch.float32).contiguous()


def _input(request: KernelRequest, activation: QParams | None) -> tuple[Tensor | None, Tensor | None, int, int]:
    """Return scale [1], zero point [1], least and greatest code, as `LayerTensors` has them."""
    if request.dynamic:
        spec = QuantSpec(num_bits=request.bits.activation, symmetric=False)
        return None, None, spec.code_min, spec.code_max
    if activation is None:
        return None, None, 0, 0
    zero_point = torch.zeros(1) if activation.zero_point is None else activation.zero_point
    scale, zero_point = activation.scale.to(torch.float32).reshape(1), zero_point.to(torch.int32).reshape(1)
    return scale, zero_point, activation.spec.code_min, activation.spec.code_max


def _panels(codes: Tensor, zero_points: Tensor | None, num_bits: int) -> Tensor:
    """Return codes int8 [groups, out, in, taps] in the order of c/weights.h: [groups * panels, bytes of a panel]."""
    groups, rows, channels, taps = codes.shape
    depth = filled(channels)
    full = torch.zeros(groups, -(-rows // PANEL) * PANEL, taps, depth, dtype=torch.int8)
    there = full[:, :rows]
    if zero_points is not None:
        # What does not exist weighs nothing: its code is the zero point.
        there += zero_points[..., None, None]
    there[..., :channels] = codes.transpose(2, 3)
    # Four codes are moved as one number.
    panels = full.reshape(-1, PANEL, taps * depth).view(torch.int32).transpose(1, 2)
    return native.pack(panels.contiguous().view(torch.int8).flatten(1), num_bits)
