"""A Linear layer of E4M3 floats on a GPU: its input made ready in one pass of ours, the product by `torch._scaled_mm`.

    codes [rows, depth], scales [rows, 1]  x  codes [out, depth], scales [1, out]  -> [rows, out]

Where PyTorch takes a scale for each row and column for the output's type, the product ends with these and the bias;
elsewhere a pass of ours ends float32 sums, as it does those of the integers' products. Nothing waits for the device.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from mixdq.runtime.kernels.gpu.configurations import Card
from mixdq.runtime.kernels.gpu.inputs import Prepared
from mixdq.runtime.kernels.gpu.layers import GpuLayer
from mixdq.runtime.kernels.gpu.tensors import LayerTensors

ALIGNMENT = 16
"""The product takes widths that are multiples; depths are, as prepared inputs are filled up."""


class FloatLayer(GpuLayer):
    """A layer of 8-bit floats ready to be called; it holds its tensors."""

    def __init__(self, tensors: LayerTensors, *, dtype: torch.dtype, card: Card, by_rows: bool) -> None:
        """`dtype` is the output's; `by_rows` says who scales: the product, or what follows it."""
        super().__init__(tensors, dtype=dtype, groups=1, window=None, card=card)
        self._by_rows = by_rows
        (codes,), scale, bias = tensors.planes, tensors.scale, tensors.bias
        self._wider = -len(codes) % ALIGNMENT
        if self._wider:
            codes = pad(codes, (0, 0, 0, self._wider))
        # The second operand is to lie column by column.
        self._weight = codes.view(torch.float8_e4m3fn).t()
        # Copies, for those of joined layers begin anywhere.
        self._weight_scale = pad(scale, (0, self._wider)).clone()[None]
        self._bias = None if bias is None else pad(bias, (0, self._wider)).to(dtype, copy=True)
        self._one = torch.ones((), device=scale.device)

    def like(self, tensors: LayerTensors) -> "FloatLayer":
        """Return such a layer of other tensors."""
        return FloatLayer(tensors, dtype=self.dtype, card=self._card, by_rows=self._by_rows)

    def multiply(self, made: Prepared, y: Tensor, added: Tensor | None) -> None:
        """Write the output [..., out] of an input made ready to `y`: contiguous, or columns of [batch, rows, more]."""
        codes = made.x.view(-1, made.x.shape[-1]).view(torch.float8_e4m3fn)
        if not self._by_rows:
            sums = torch._scaled_mm(codes, self._weight, self._one, self._one, out_dtype=torch.float32)
            self.finish(sums[:, : self._columns].contiguous()[None], made, y, added)
            return
        operands = codes, self._weight, made.row_scale[:, None], self._weight_scale, self._bias
        if added is None and not self._wider and y.is_contiguous() and y.dtype == self.dtype:
            torch._scaled_mm(*operands, out_dtype=self.dtype, out=y.view(-1, self._columns))
            return
        found = torch._scaled_mm(*operands, out_dtype=self.dtype)[:, : self._columns].view(y.shape)
        if added is None:
            y.copy_(found)
        else:
            torch.add(found, added, out=y)
