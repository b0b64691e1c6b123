"""Linear layers that read one input, on a GPU: it is made ready once, and layers of like weights are one product.

    x [..., in] -> [..., sum of out], the layers' outputs side by side

Their tensors move into one memory, where each layer also goes on reading its own.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from mixdq.quant.bos import CLIP_TOKENS, BosRow
from mixdq.runtime.before import Before
from mixdq.runtime.kernels.gpu.inputs import Prepared, as_picture, prepare
from mixdq.runtime.kernels.gpu.layers import GpuLayer, on
from mixdq.runtime.kernels.gpu.tensors import LayerTensors, stacked


@dataclass(frozen=True)
class Part:
    """Layers of like weights that are neighbours: outputs from `first` to `last` of the whole."""

    layer: GpuLayer
    first: int
    last: int
    input: Hashable
    bos: BosRow | None


class Together:
    """Layers ready to be called as one. `tensors` are those of each, in the memory of all."""

    def __init__(self, layers: Sequence[GpuLayer], bos: Sequence[BosRow | None]) -> None:
        """`bos` has the first text token's row of each layer; layers are on one device and of one output dtype."""
        self.tensors: list[LayerTensors] = []
        self._parts: list[Part] = []
        self._total = 0
        self._dtype = layers[0].dtype
        like = groupby(zip(layers, bos, strict=True), lambda each: _likeness(each[0], each[1]))
        for (input, *_), group in like:
            self._add(list(group), input)

    def _add(self, group: Sequence[tuple[GpuLayer, BosRow | None]], input: Hashable) -> None:
        tensors = stacked([layer.tensors for layer, _ in group])
        first = 0
        for layer, _ in group:
            last = first + len(layer.tensors.scale)
            self.tensors.append(tensors.rows(first, last))
            first = last
        rows = [bos for _, bos in group if bos is not None]
        bos = BosRow(input=rows[0].input, output=torch.cat([row.output for row in rows])) if rows else None
        begin = self._total
        self._total += first
        self._parts.append(Part(group[0][0].like(tensors), begin, self._total, input, bos))

    def takes(self, x: Tensor) -> bool:
        """Return whether such an input may be given: where first tokens are apart, texts as an encoder gives them."""
        texts = x.dim() == 3 and x.shape[1] <= CLIP_TOKENS
        return texts or all(part.bos is None for part in self._parts)

    def __call__(self, x: Tensor, before: Before) -> Tensor:
        """Return all outputs of `before(x)`; where there are first tokens, nothing stands before."""
        shape = x.shape[:-1]
        x = x.reshape(1, -1, x.shape[-1]) if x.dim() < 3 else x.flatten(0, -3)
        whole = self._parts[0].layer.empty(x, *x.shape[:2], columns=self._total, dtype=self._dtype)
        made: dict[Hashable, Prepared] = {}
        with on(x.device):
            for part in self._parts if whole.numel() else ():
                y = whole[..., part.first : part.last]
                rows, written = (x, y) if part.bos is None else (x[:, 1:], y[:, 1:])
                if written.numel():
                    if part.input not in made:
                        picture = as_picture(rows, apart=before.kind == "group_norm")
                        made[part.input] = prepare(picture, part.layer.tensors, None, 1, before)
                    part.layer.multiply(made[part.input], written, None)
                if part.bos is not None:
                    part.layer.write_bos(x, y, part.bos.input, part.bos.output)
        return whole.to(self._dtype).view(*shape, self._total)


def _likeness(layer: GpuLayer, bos: BosRow | None) -> tuple[Hashable, ...]:
    """Return what is equal for layers that can be one product; the first of it for those of one prepared input.

    It waits for the device, which has the numbers.
    """
    tensors, order = layer.tensors, layer.tensors.order
    grid = [None if number is None else number.item() for number in (tensors.input_scale, tensors.input_zero_point)]
    input = (order.channels, order.depth, tensors.low, tensors.high, *grid, bos is not None)
    own = None if bos is None else bos.input.cpu().numpy().tobytes()
    return input, order, tensors.zero_points is None, tensors.bias is None, own
