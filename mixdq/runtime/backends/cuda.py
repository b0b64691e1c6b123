"""Integer products on NVIDIA GPUs, by the Triton kernels of `mixdq.runtime.kernels.gpu`.

One kernel makes an activation ready: codes, channels last, borders of the zero point around; where only the weight is
quantized and the input lies as it should, there is nothing to do. One multiplies on the matrix units, weights unpacked
in registers, and ends with zero point, scale, bias and cast. Sums of codes are int32 and exact; sums of floats are
float32. No kernel waits for the device: an input that holds NaN or infinity raises nothing here, but makes every output
of its row, or picture, NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from mixdq.errors import NoBackendError
from mixdq.quant.bos import CLIP_TOKENS, BosRow
from mixdq.quant.e4m3 import GREATEST
from mixdq.quant.packing import unpack
from mixdq.runtime.before import Before
from mixdq.runtime.kernel import JointKernel, Kernel, KernelRequest, dtype_refusals, int32_refusals
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.kernels.gpu.tensors import LayerTensors, Window
from mixdq.runtime.kernels.gpu.weights import codes_of, packed_rows, planes_of, weight_order
from mixdq.types.plan import FLOAT_BITS
from mixdq.types.tensors import QParams, QTensor, QuantSpec

if TYPE_CHECKING:
    from mixdq.runtime.kernels.gpu.layers import GpuLayer
    from mixdq.runtime.kernels.gpu.together import Together

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_GROUPS = 65_535
"""As many as CUDA starts programs along a grid's second axis."""


@dataclass(frozen=True)
class CudaBackend:
    """Compiled for the card on first use. The epilogue rounds as the reference does, in the same order."""

    name: str = "cuda"
    tolerance: float = 5 * 2.0**-24

    def refusals(self, request: KernelRequest) -> list[str]:
        """Return why not: a device, dtype or weight it does not take, too many groups, an old card, no Triton."""
        device = available.device_type()
        if request.device != device:
            return [f"it computes on {device}, not on {request.device}"]
        if request.bits.weight == FLOAT_BITS:
            return ["the weight is in floating point"]
        reasons = []
        reasons += dtype_refusals(request, DTYPES)
        reasons += int32_refusals(request)
        if request.groups > MOST_GROUPS:
            reasons.append(f"a convolution of {request.groups} groups (at most {MOST_GROUPS})")
        trouble = available.trouble()
        if trouble is not None:
            reasons.append(trouble)
        return reasons

    def bind(self, request: KernelRequest, weight: QTensor, bias: Tensor | None, activation: QParams | None) -> Kernel:
        """Return a kernel with the weight in planes."""
        # Not where there is no Triton.
        from mixdq.runtime.kernels.gpu.layers import GpuLayer

        window = None
        if request.op == "conv2d":
            height, width = request.weight_shape[2:]
            window = Window(
                kernel=(height, width), stride=request.stride, padding=request.padding, dilation=request.dilation
            )
        layer = GpuLayer(
            layer_tensors(request, weight, bias, activation),
            dtype=request.output_dtype,
            groups=request.groups,
            window=window,
            card=available.card(weight.codes.device),
        )
        return GpuProduct(request, layer)


class GpuProduct:
    """A kernel of a layer on a GPU, which holds the weight in planes; in the memory of several where `joint`."""

    def __init__(
        self, request: KernelRequest, layer: "GpuLayer", joint: JointKernel | None = None, place: int = 0
    ) -> None:
        self.request, self.layer, self.joint, self.place = request, layer, joint, place
        self._run = layer.linear if request.op == "linear" else layer.conv2d

    def portable_codes(self) -> Tensor:
        """Return the weight's codes as they were bound."""
        tensors, shape = self.layer.tensors, self.request.weight_shape
        codes = codes_of(tensors.planes, tensors.order).reshape(shape)
        if tensors.order.num_bits < 8:
            return packed_rows(codes.flatten(1), tensors.order.num_bits)
        # Whoever saves tensors of one memory may take them for one.
        return codes if self.joint is None else codes.clone()

    def add(self, x: Tensor, total: Tensor, dtype: torch.dtype, /) -> Tensor:
        """Return `total` plus the product of `x`, in `dtype`."""
        try:
            return self._run(x, total, dtype)
        except available.failures() as error:
            _fail(self.request.layer, error)

    def by_channel(self, whole: Tensor, before: Before, /) -> Before:
        """Return what a group norm of the whole input does to each of its channels; raises as `folded`."""
        _check_devices(self.request.layer, whole, before)
        try:
            return self.layer.by_channel(whole, before)
        except available.failures() as error:
            _fail(self.request.layer, error)

    def folded(self, x: Tensor, before: Before, added: Tensor | None, /, dtype: torch.dtype | None = None) -> Tensor:
        """Return the product of `before(x)` plus `added`.

        Raises:
            NoBackendError: they are on two devices, where a kernel would read addresses of another; or a kernel does
                not compile or start.
        """
        _check_devices(self.request.layer, x, before, added)
        try:
            return self._run(x, added, dtype, before)
        except available.failures() as error:
            _fail(self.request.layer, error)

    def join(self, others: Sequence[Kernel], bos: Sequence[BosRow | None], /) -> "tuple[GpuProduct, ...] | None":
        """Return this kernel and others in one memory, to be called as one; None where one is of another kind."""
        from mixdq.runtime.kernels.gpu.together import Together

        kernels = [self, *(other for other in others if isinstance(other, GpuProduct))]
        requests = [kernel.request for kernel in kernels]
        like = {(each.op, each.device, each.output_dtype) for each in requests}
        if len(kernels) <= len(others) or like != {("linear", self.request.device, self.request.output_dtype)}:
            return None
        together = Together([kernel.layer for kernel in kernels], bos)
        joint = _Joint(together, tuple(request.layer for request in requests))
        return tuple(
            GpuProduct(kernel.request, kernel.layer.like(tensors), joint, place)
            for place, (kernel, tensors) in enumerate(zip(kernels, together.tensors, strict=True))
        )

    def beside_bos(self, bos: BosRow, general: Kernel, /) -> Kernel:
        """Return a kernel that sets first tokens aside by itself, and leaves unusual texts to `general`."""
        return _BesideBos(self.request.layer, self.layer, bos, general)

    def __call__(self, x: Tensor, /) -> Tensor:
        """Return the product of `x`."""
        try:
            return self._run(x)
        except available.failures() as error:
            _fail(self.request.layer, error)


@dataclass(frozen=True, eq=False)
class _Joint:
    """Linear layers that read one input."""

    together: "Together"
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def takes(self, x: Tensor, /) -> bool:
        """Return whether such an input may be given; each layer by itself takes any."""
        return self.together.takes(x)

    def __call__(self, x: Tensor, before: Before, /) -> Tensor:
        """Return the layers' outputs side by side; raises NoBackendError as `GpuProduct.folded`."""
        _check_devices(self.names[0], x, before)
        try:
            return self.together(x, before)
        except available.failures() as error:
            _fail(f"{self.names[0]} and {len(self) - 1} more layers of the same input", error)


@dataclass(frozen=True)
class _BesideBos:
    """A Linear layer of one or more texts, none longer than the text encoder takes."""

    name: str
    layer: "GpuLayer"
    bos: BosRow
    general: Kernel

    def __call__(self, x: Tensor, /) -> Tensor:
        if x.dim() == 3 and x.shape[1] <= CLIP_TOKENS:
            try:
                return self.layer.linear_beside_bos(x, self.bos.input, self.bos.output)
            except available.failures() as error:
                _fail(self.name, error)
        return self.general(x)


def _fail(name: str, error: Exception) -> NoReturn:
    """Raise what a kernel that does not compile or start says, with the layer's name; PyTorch's own errors as they are.

    Memory that is out is no matter of the kernel, nor an error of the device, which may be that of any kernel before.
    """
    text = " ".join(str(error).split())[:300]
    if "out of memory" in text or text.startswith("CUDA error"):
        raise error
    reason = f"a kernel of Triton failed: {type(error).__name__}: {text}"
    raise NoBackendError(
        f"No backend can run {name}: cuda: {reason}. Update Triton (pip install -U triton), or run what is slower: "
        "--backend int_mm, or --backend reference.",
        refusals={"cuda": [reason]},
    ) from error


def _check_devices(name: str, x: Tensor, before: Before, added: Tensor | None = None) -> None:
    others = {tensor.device for tensor in (before.weight, before.bias, added) if tensor is not None} - {x.device}
    if others:
        raise NoBackendError(
            f"No backend can run {name}: its input is on {x.device}, what is done before or added after it on "
            f"{', '.join(map(str, others))}. Move all to one device.",
            refusals={},
        )


def layer_tensors(
    request: KernelRequest, weight: QTensor, bias: Tensor | None, activation: QParams | None
) -> LayerTensors:
    """Return what `Backend.bind` is given as these kernels hold it, copied but for the scale and the bias."""
    num_bits, device = request.bits.weight, weight.codes.device
    out, channels = weight.shape[:2]
    taps = torch.Size(weight.shape[2:]).numel()
    codes = weight.codes if num_bits == 8 else unpack(weight.codes, num_bits, channels * taps)
    codes = codes.reshape(out, channels, taps)
    zero_points = weight.qparams.zero_point
    columns = None if zero_points is None else zero_points.reshape(-1).to(torch.int8)
    sums = codes.sum(dim=(1, 2), dtype=torch.int64)
    if columns is not None:
        sums -= channels * taps * columns.to(torch.int64)
    is_float = request.bits.activation == FLOAT_BITS
    order = weight_order(num_bits, channels, taps, of_floats=is_float)
    low = high = 0
    if request.bits.is_float:
        low, high = -int(GREATEST), int(GREATEST)
    elif not is_float:
        spec = QuantSpec(num_bits=request.bits.activation, symmetric=False)
        low, high = spec.code_min, spec.code_max
    input_scale, input_zero_point = _input(activation, device)
    return LayerTensors(
        planes=planes_of(codes, columns, order),
        order=order,
        zero_points=columns,
        sums=sums.to(torch.int32),
        scale=weight.qparams.scale.reshape(-1).to(torch.float32).contiguous(),
        bias=None if bias is None else bias.detach().to(torch.float32).contiguous(),
        input_scale=input_scale,
        input_zero_point=input_zero_point,
        low=low,
        high=high,
        floats=request.bits.is_float,
    )


def _input(activation: QParams | None, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Return scale [1] and zero point [1] on the device; None where there are none."""
    if activation is None:
        return None, None
    zero_point = torch.zeros(1) if activation.zero_point is None else activation.zero_point
    scale = activation.scale.to(device, torch.float32).reshape(1).contiguous()
    return scale, zero_point.to(device, torch.int32).reshape(1).contiguous()
