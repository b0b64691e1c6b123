"""A Linear or Conv2d layer on a GPU, bound to its tensors: an input of any strides in, one or two kernels, output out.

    linear  x [..., in]                      -> [..., out]
    conv2d  x [(batch,) in, height, width]   -> [(batch,) out, height, width], channels last

A linear layer is a convolution of a window of one pixel over pictures of one line. Nothing here waits for the device.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from mixdq.quant.bos import MISFIT_LIMIT
from mixdq.runtime.kernels.gpu import activations, available, bos, product
from mixdq.runtime.kernels.gpu.configurations import Card, Configuration, Sizes, configuration
from mixdq.runtime.kernels.gpu.weights import WeightOrder

PREPARED_AT_ONCE = 4096
"""Numbers that one program prepares."""
OPERANDS = {torch.int8: tl.int8, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""An input's dtype -> Triton's name for it."""


@dataclass(frozen=True, kw_only=True)
class LayerTensors:
    """What a layer is, all but its geometry; tensors are contiguous and on one device.

    Attributes:
        planes: the weight, in the order of `order`.
        order: how it lies.
        zero_points: int8 [out], the weight's; None where it has none.
        sums: int32 [out], of the weight's codes less zero points.
        scale, bias: float32 [out]; scale is the weight's.
        input_scale, input_zero_point: float32 [1] and int32 [1]; None where each row has its own, or there are none.
        low, high: least and greatest code of the input; equal where it stays as it is.
    """

    planes: tuple[Tensor, ...]
    order: WeightOrder
    zero_points: Tensor | None
    sums: Tensor
    scale: Tensor
    bias: Tensor | None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class Window:
    """What of the input an output sees."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def is_pixel(self) -> bool:
        """Whether each output sees the pixel at its own place alone."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)


@dataclass(frozen=True)
class Prepared:
    """An input made ready, [batch, height, width, groups * depth], and the scales of its rows or pictures."""

    x: Tensor
    row_scale: Tensor
    row_zero: Tensor
    of_pictures: bool


class GpuLayer:
    """A layer ready to be called; it holds its tensors."""

    def __init__(
        self, tensors: LayerTensors, *, dtype: torch.dtype, groups: int, window: Window | None, card: Card
    ) -> None:
        """`dtype` is the output's; without a window the layer is a Linear.

        `forced` may be set to a configuration to run in, whatever is best known.
        """
        self.tensors = tensors
        self._dtype, self._groups, self._card = dtype, groups, card
        self._widens = available.interpreted()
        self._is_linear = window is None
        self._window = window or Window()
        self._columns = tensors.scale.shape[0]
        self._of_codes = tensors.low < tensors.high
        self._dynamic = self._of_codes and tensors.input_scale is None
        self.forced: Configuration | None = None
        self._planes = (*tensors.planes, *tensors.planes[:1] * 2)[:3]
        self._fields = (*tensors.order.fields, 0, 0)[:3]

    def linear(self, x: Tensor, /, added: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return the output [..., out] of `x` [..., in], plus `added`, float32 and contiguous, of its shape.

        It has the layer's dtype where none is given.
        """
        dtype = dtype or self._dtype
        y = self._empty(x, *x.shape[:-1], dtype=dtype)
        if y.numel():
            self._run(_as_picture(x), y, added)
        return y.to(dtype)

    def conv2d(self, x: Tensor, /, added: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return the output [(batch,) out, height, width] of `x` [(batch,) in, height, width]; as `linear`.

        `added` is channels last.
        """
        if x.dim() == 3:
            return self.conv2d(x[None], None if added is None else added[None], dtype)[0]
        dtype = dtype or self._dtype
        batch, _, height, width = x.shape
        y = self._empty(x, batch, *self._size(height, width), dtype=dtype)
        if y.numel():
            self._run(x, y, None if added is None else added.permute(0, 2, 3, 1))
        return y.to(dtype).permute(0, 3, 1, 2)

    def linear_beside_bos(self, x: Tensor, bos_input: Tensor, bos_output: Tensor) -> Tensor:
        """Return the output of `x` [batch, tokens, in] whose first tokens have rows of their own; see `bos`.

        `bos_input` [in] and `bos_output` [out] are float32.
        """
        tensors, order = self.tensors, self.tensors.order
        batch, tokens, channels = x.shape
        y = self._empty(x, batch, tokens, dtype=self._dtype)
        if not y.numel():
            return y.to(self._dtype)
        if tokens > 1:
            self._run(_as_picture(x[:, 1:]), y[:, 1:], None)
        with _on(x.device):
            bos.bos_rows[(-(-self._columns // 64), batch)](
                *(x, bos_input, bos_output, tensors.bias, tensors.scale, tensors.zero_points, *self._planes, y),
                *(channels, self._columns, order.tap_steps, x.stride(0), x.stride(2), y.stride(0)),
                misfit_limit=MISFIT_LIMIT,
                field_0=self._fields[0],
                field_1=self._fields[1],
                field_2=self._fields[2],
                tile=order.tile,
                tiles=order.tiles,
                symmetric=tensors.zero_points is None,
                has_bias=tensors.bias is not None,
                block_columns=64,
                block_channels=min(2048, _power_of_2(channels)),
                num_warps=4,
                enable_fp_fusion=False,
            )
        return y.to(self._dtype)

    def _empty(self, x: Tensor, *shape: int, dtype: torch.dtype) -> Tensor:
        # Triton's interpreter does not round to bfloat16.
        stored = torch.float32 if self._widens else dtype
        return torch.empty(*shape, self._columns, dtype=stored, device=x.device)

    def _run(self, x: Tensor, y: Tensor, added: Tensor | None) -> None:
        with _on(x.device):
            self._multiply(self.prepare(x), y, added)

    def prepare(self, x: Tensor) -> Prepared:
        """Return `x` [batch, in, height, width] as the product wants it."""
        tensors, order, window = self.tensors, self.tensors.order, self._window
        batch, _, height, width = x.shape
        shape = (batch, height + 2 * window.padding[0], width + 2 * window.padding[1], self._groups * order.depth)
        of_pictures = not window.is_pixel or self._groups > 1 or (self._dynamic and not self._is_linear)
        none = tensors.scale
        if not self._of_codes:
            last = x.permute(0, 2, 3, 1)
            if last.shape == shape and last.is_contiguous():
                return Prepared(last, none, none, of_pictures)
        prepared = torch.empty(shape, dtype=torch.int8 if self._of_codes else x.dtype, device=x.device)
        picture = shape[1] * shape[2]
        blocks = _blocks(picture, x, order.depth)
        row_scale, row_zero, ranges, chunks = none, none, none, 1
        if self._of_codes:
            rows = batch if of_pictures else batch * picture
            if of_pictures and tensors.input_scale is not None:
                row_scale = tensors.input_scale.repeat(rows)
            else:
                row_scale = torch.empty(rows, dtype=torch.float32, device=x.device)
            row_zero = torch.empty(rows, dtype=torch.int32, device=x.device)
            if of_pictures and self._dynamic:
                ranges = _ranges(x)
                chunks = ranges.shape[1]
        activations.prepare[(batch * -(-picture // blocks[0]), self._groups)](
            *(x, prepared, tensors.input_scale, tensors.input_zero_point, row_scale, row_zero, ranges),
            *(height, width, shape[2], picture, *window.padding),
            *(x.stride(0), x.stride(1), x.stride(2), x.stride(3)),
            *(order.channels, order.depth, chunks),
            low=tensors.low,
            high=tensors.high,
            of_codes=self._of_codes,
            of_pictures=of_pictures,
            dynamic=self._dynamic,
            block_rows=blocks[0],
            block_channels=blocks[1],
            block_chunks=activations.CHUNKS,
            num_warps=4,
            enable_fp_fusion=False,
        )
        return Prepared(prepared, row_scale, row_zero, of_pictures)

    def _multiply(self, made: Prepared, y: Tensor, added: Tensor | None) -> None:
        tensors, order, window = self.tensors, self.tensors.order, self._window
        pixel, line, picture = made.x.shape[3], made.x.stride(1), made.x.stride(0)
        rows, columns = y.numel() // self._columns, self._columns // self._groups
        steps = order.taps * order.tap_steps
        chosen = self.configuration(rows, made.x.element_size())
        partial = y
        if chosen.split > 1:
            sums = torch.int32 if self._of_codes else torch.float32
            partial = torch.empty(chosen.split, rows, self._columns, dtype=sums, device=y.device)
        # A text's rows lie apart from the next one's where first tokens lie between.
        y_order = (rows, 0) if y.is_contiguous() else (y.shape[-2], y.stride(0))
        scale_rows = y.shape[-3] * y.shape[-2] if made.of_pictures else 1
        ends = (tensors.sums, tensors.scale, tensors.bias, made.row_scale, made.row_zero, added, y, partial)
        flags = {
            "of_codes": self._of_codes,
            "has_bias": tensors.bias is not None,
            "has_added": added is not None,
            "split": chosen.split,
        }
        tiles = -(-rows // chosen.rows) * -(-columns // chosen.columns)
        product.product[(tiles, self._groups, chosen.split)](
            *(made.x, *self._planes, tensors.zero_points, *ends),
            *(rows, columns, steps, order.tap_steps),
            *(1, 1, scale_rows) if window.is_pixel else (y.shape[-2], y.shape[-3] * y.shape[-2], scale_rows),
            *(picture, line, pixel, window.dilation[0] * line, window.dilation[1] * pixel),
            *(window.stride[0] * line, window.stride[1] * pixel),
            *y_order,
            bits=order.num_bits,
            field_0=self._fields[0],
            field_1=self._fields[1],
            field_2=self._fields[2],
            tile=order.tile,
            tiles=order.tiles,
            kernel_width=window.kernel[1],
            is_window=not window.is_pixel,
            operand=self._operand(made.x.dtype),
            symmetric=tensors.zero_points is None,
            **flags,
            block_rows=chosen.rows,
            block_columns=chosen.columns,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
            enable_fp_fusion=False,
        )
        if chosen.split > 1:
            product.finish[(-(-rows // 32), -(-self._columns // 64))](
                *ends,
                *(rows, self._columns, scale_rows, *y_order),
                **flags,
                block_rows=32,
                block_columns=64,
                num_warps=4,
                enable_fp_fusion=False,
            )

    def configuration(self, rows: int, input_bytes: int) -> Configuration:
        """Return in what tiles a product of so many rows runs."""
        if self.forced is not None:
            return self.forced
        order = self.tensors.order
        sizes = Sizes(
            rows=rows,
            columns=self._columns // self._groups,
            groups=self._groups,
            steps=order.taps * order.tap_steps,
            depth=order.taps * order.depth,
            tile=order.tile,
            weight_bits=order.num_bits,
            input_bytes=input_bytes,
            of_codes=self._of_codes,
        )
        return configuration(sizes, self._card)

    def _operand(self, dtype: torch.dtype) -> tl.dtype:
        # Triton's interpreter takes bfloat16 for integers.
        return tl.float32 if self._widens and not self._of_codes else OPERANDS[dtype]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        window = self._window
        covered = [window.dilation[i] * (window.kernel[i] - 1) + 1 - 2 * window.padding[i] for i in (0, 1)]
        return (height - covered[0]) // window.stride[0] + 1, (width - covered[1]) // window.stride[1] + 1


def _as_picture(x: Tensor) -> Tensor:
    """Return `x` [..., in] as [batch, in, 1, tokens], where its memory allows without a copy."""
    if x.dim() < 3:
        x = x.reshape(1, -1, x.shape[-1])
    elif x.dim() > 3:
        x = x.flatten(0, -3)
    if x.stride(0) == x.shape[1] * x.stride(1):
        x = x.flatten(0, 1)[None]
    return x.transpose(1, 2).unsqueeze(2)


def _blocks(picture: int, x: Tensor, depth: int) -> tuple[int, int]:
    """Return rows and channels of a block: along the axis that lies in memory without gaps, enough of both."""
    channels = min(_power_of_2(depth), 1024 if x.stride(1) == 1 else 64)
    return min(_power_of_2(picture), max(1, PREPARED_AT_ONCE // channels)), channels


def _ranges(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    picture = height * width
    rows, block_channels = _blocks(picture, x, channels)
    chunk = -(-picture // min(activations.CHUNKS, -(-picture // rows)))
    chunks = -(-picture // chunk)
    ranges = torch.empty(batch, chunks, 3, dtype=torch.float32, device=x.device)
    activations.find_ranges[(chunks, batch)](
        *(x, ranges, width, picture, x.stride(0), x.stride(1), x.stride(2), x.stride(3), channels, chunk),
        block_rows=rows,
        block_channels=block_channels,
        num_warps=4,
    )
    return ranges


def _power_of_2(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which kernels start on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
