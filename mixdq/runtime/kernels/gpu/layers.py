"""A Linear or Conv2d layer on a GPU, bound to its tensors: an input of any strides in, one or two kernels, output out.

    linear  x [..., in]                      -> [..., out]
    conv2d  x [(batch,) in, height, width]   -> [(batch,) out, height, width], channels last

A linear layer is a convolution of a window of one pixel over pictures of one line. Nothing here waits for the device.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton.language as tl
from torch import Tensor
from triton import OutOfResources

from mixdq.quant.bos import MISFIT_LIMIT
from mixdq.runtime.before import NOTHING, Before
from mixdq.runtime.kernels.gpu import available, bos, product
from mixdq.runtime.kernels.gpu.configurations import Card, Configuration, Sizes
from mixdq.runtime.kernels.gpu.inputs import Prepared, as_picture, by_channel, power_of_2, prepare
from mixdq.runtime.kernels.gpu.tensors import LayerTensors, Window
from mixdq.runtime.kernels.gpu.tuning import TUNER, another, configuration

OPERANDS = {torch.int8: tl.int8, torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
"""An input's dtype -> Triton's name for it."""


class GpuLayer:
    """A layer ready to be called; it holds its tensors."""

    def __init__(
        self, tensors: LayerTensors, *, dtype: torch.dtype, groups: int, window: Window | None, card: Card
    ) -> None:
        """`dtype` is the output's; without a window the layer is a Linear.

        `forced` may be set to a configuration to run in, whatever is best known.
        """
        self.tensors = tensors
        self.dtype, self._groups, self._card = dtype, groups, card
        self._widens = available.interpreted()
        self._given_window, self._window = window, window or Window()
        self._columns = tensors.scale.shape[0]
        self._of_codes = tensors.of_codes
        self.forced: Configuration | None = None
        self._planes = (*tensors.planes, *tensors.planes[:1] * 2)[:3]
        self._fields = (*tensors.order.fields, 0, 0)[:3]

    def linear(
        self, x: Tensor, /, added: Tensor | None = None, dtype: torch.dtype | None = None, before: Before = NOTHING
    ) -> Tensor:
        """Return the output [..., out] of `before(x)`, [..., in], plus `added`, which broadcasts to its shape.

        It has the layer's dtype where none is given. The product is rounded to the dtype of `added` before that.
        """
        dtype = dtype or self.dtype
        y = self.empty(x, *x.shape[:-1], dtype=dtype)
        if y.numel():
            self._run(as_picture(x, apart=before.kind in ("group_norm", "affine")), y, added, before)
        return y.to(dtype)

    def conv2d(
        self, x: Tensor, /, added: Tensor | None = None, dtype: torch.dtype | None = None, before: Before = NOTHING
    ) -> Tensor:
        """Return the output [(batch,) out, height, width] of `x` [(batch,) in, height, width]; as `linear`."""
        if x.dim() == 3:
            return self.conv2d(x[None], None if added is None else added[None], dtype, before)[0]
        dtype = dtype or self.dtype
        batch, _, height, width = x.shape
        y = self.empty(x, batch, *self._size(height, width), dtype=dtype)
        if y.numel():
            self._run(x, y, None if added is None else added.expand(y.movedim(-1, 1).shape).movedim(1, -1), before)
        return y.to(dtype).permute(0, 3, 1, 2)

    def by_channel(self, x: Tensor, before: Before) -> Before:
        """Return what a group norm of `x`, which may have more channels than the layer's, does to each channel."""
        if self._given_window is None:
            x = as_picture(x, apart=True)
        with on(x.device):
            return by_channel(x if x.dim() == 4 else x[None], before)

    def linear_beside_bos(self, x: Tensor, bos_input: Tensor, bos_output: Tensor) -> Tensor:
        """Return the output of `x` [batch, tokens, in] whose first tokens have rows of their own; see `bos`.

        `bos_input` [in] and `bos_output` [out] are float32.
        """
        y = self.empty(x, *x.shape[:2], dtype=self.dtype)
        if y.numel():
            if x.shape[1] > 1:
                self._run(as_picture(x[:, 1:]), y[:, 1:], None)
            self.write_bos(x, y, bos_input, bos_output)
        return y.to(self.dtype)

    def write_bos(self, x: Tensor, y: Tensor, bos_input: Tensor, bos_output: Tensor) -> None:
        """Write the first tokens' output of `x` [batch, tokens, in] to those of `y` [batch, tokens, out]."""
        tensors, order, channels = self.tensors, self.tensors.order, x.shape[2]
        with on(x.device):
            bos.bos_rows[(-(-self._columns // 64) * x.shape[0],)](
                *(x, bos_input, bos_output, tensors.bias, tensors.scale, tensors.zero_points, *self._planes, y),
                *(channels, self._columns, order.tap_steps, x.stride(0), x.stride(2), y.stride(0)),
                misfit_limit=MISFIT_LIMIT,
                field_0=self._fields[0],
                field_1=self._fields[1],
                field_2=self._fields[2],
                tile=order.tile,
                tiles=order.tiles,
                symmetric=tensors.zero_points is None,
                floats=tensors.floats,
                has_bias=tensors.bias is not None,
                block_columns=64,
                block_channels=min(2048, power_of_2(channels)),
                num_warps=4,
                enable_fp_fusion=False,
            )

    def empty(self, x: Tensor, *shape: int, dtype: torch.dtype, columns: int | None = None) -> Tensor:
        """Return an output [*shape, columns] to be written and to become one of `dtype`; its own columns where None."""
        # Triton's interpreter does not round to bfloat16.
        stored = torch.float32 if self._widens else dtype
        return torch.empty(*shape, columns or self._columns, dtype=stored, device=x.device)

    def like(self, tensors: LayerTensors) -> "GpuLayer":
        """Return such a layer of other tensors."""
        return GpuLayer(tensors, dtype=self.dtype, groups=self._groups, window=self._given_window, card=self._card)

    def _run(self, x: Tensor, y: Tensor, added: Tensor | None, before: Before = NOTHING) -> None:
        with on(x.device):
            self.multiply(prepare(x, self.tensors, self._given_window, self._groups, before), y, added)

    def prepared(self, x: Tensor) -> tuple[Prepared, Tensor]:
        """Return an input made ready and an output [batch, height, width, out] to write to: what `multiply` takes."""
        x = as_picture(x) if self._given_window is None else x
        batch, _, height, width = x.shape
        with on(x.device):
            made = prepare(x, self.tensors, self._given_window, self._groups)
        return made, self.empty(x, batch, *self._size(height, width), dtype=self.dtype)

    def multiply(self, made: Prepared, y: Tensor, added: Tensor | None) -> None:
        """Write the output [..., out] of an input made ready to `y`: contiguous, or columns of [batch, rows, more]."""
        order = self.tensors.order
        sizes = Sizes(
            rows=y.numel() // self._columns,
            columns=self._columns // self._groups,
            groups=self._groups,
            steps=order.taps * order.tap_steps,
            depth=order.taps * order.depth,
            tile=order.tile,
            weight_bits=order.num_bits,
            input_bytes=made.x.element_size(),
            of_codes=self._of_codes,
        )
        tuner = TUNER.get()
        if tuner is not None:
            chosen = tuner.best(sizes, self._card, lambda choice: self._launch(choice, made, y, added))
        elif self.forced:
            return self._launch(self.forced, made, y, added)
        else:
            chosen = configuration(sizes, self._card)
        while True:
            try:
                return self._launch(chosen, made, y, added)
            except OutOfResources as error:
                chosen = another(sizes, self._card, chosen, error)
                if tuner is not None:
                    tuner.found[self._card, sizes] = chosen

    def _launch(self, chosen: Configuration, made: Prepared, y: Tensor, added: Tensor | None) -> None:
        tensors, order, window = self.tensors, self.tensors.order, self._window
        pixel, line, picture = made.x.shape[3], made.x.stride(1), made.x.stride(0)
        rows, columns = y.numel() // self._columns, self._columns // self._groups
        steps = order.taps * order.tap_steps
        partial = y
        if chosen.split > 1:
            sums = torch.int32 if self._of_codes else torch.float32
            partial = torch.empty(chosen.split, rows, self._columns, dtype=sums, device=y.device)
        ends, scale_rows, orders, flags = self._end(partial, made, y, added, chosen.split)
        tiles = -(-rows // chosen.rows) * -(-columns // chosen.columns)
        product.product[(tiles, self._groups, chosen.split)](
            *(made.x, *self._planes, tensors.zero_points, *ends),
            *(rows, columns, steps, order.tap_steps),
            *(1, 1, scale_rows) if window.is_pixel else (y.shape[-2], y.shape[-3] * y.shape[-2], scale_rows),
            *(picture, line, pixel, window.dilation[0] * line, window.dilation[1] * pixel),
            *(window.stride[0] * line, window.stride[1] * pixel),
            *orders,
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
            through_registers=not self._card.reads_shared,
            **flags,
            block_rows=chosen.rows,
            block_columns=chosen.columns,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
            enable_fp_fusion=False,
        )
        if chosen.split > 1:
            self.finish(partial, made, y, added)

    def finish(self, sums: Tensor, made: Prepared, y: Tensor, added: Tensor | None) -> None:
        """Write what `sums` [parts, rows, out] of an input made ready come to, as `multiply` does."""
        split, rows, columns = sums.shape
        ends, scale_rows, orders, flags = self._end(sums, made, y, added, split)
        product.finish[(-(-rows // 32), -(-columns // 64))](
            *ends,
            *(rows, columns, rows * columns, scale_rows, *orders),
            **flags,
            block_rows=32,
            block_columns=64,
            num_warps=4,
            enable_fp_fusion=False,
        )

    def _end(
        self, partial: Tensor, made: Prepared, y: Tensor, added: Tensor | None, split: int
    ) -> tuple[tuple[Tensor | None, ...], int, tuple[int, ...], dict[str, bool | int]]:
        """Return what the end of a product is of: tensors, rows that share a scale, orders of rows, constants."""
        tensors = self.tensors
        # A text's rows lie apart from the next one's where first tokens lie between, rows where other columns do.
        rows = y.numel() // self._columns
        y_order = (rows, 0, self._columns) if y.is_contiguous() else (y.shape[-2], y.stride(0), y.stride(-2))
        more = None if added is None else _rows_of(added, y)
        more_order = (1, 0, 0) if more is None else (more.shape[1], more.stride(0), more.stride(1))
        scale_rows = y.shape[-3] * y.shape[-2] if made.of_pictures else 1
        ends = (tensors.sums, tensors.scale, tensors.bias, made.row_scale, made.row_zero, more, y, partial)
        flags = {
            "of_codes": self._of_codes,
            "has_bias": tensors.bias is not None,
            "has_added": added is not None,
            "split": split,
        }
        return ends, scale_rows, (*y_order, *more_order), flags

    def _operand(self, dtype: torch.dtype) -> tl.dtype:
        # Triton's interpreter takes bfloat16 for integers.
        return tl.float32 if self._widens and not self._of_codes else OPERANDS[dtype]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        window = self._window
        covered = [window.dilation[i] * (window.kernel[i] - 1) + 1 - 2 * window.padding[i] for i in (0, 1)]
        return (height - covered[0]) // window.stride[0] + 1, (width - covered[1]) // window.stride[1] + 1


def _rows_of(added: Tensor, y: Tensor) -> Tensor:
    """Return what is added to `y` [..., out] as [batches, rows, out] of any strides but the last; mostly no copy."""
    added = added.expand(y.shape)
    added = added.flatten(1, 2) if y.dim() == 4 else added.reshape(1, -1, y.shape[-1])
    return added if added.stride(-1) == 1 else added.contiguous()


def on(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which kernels start on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
