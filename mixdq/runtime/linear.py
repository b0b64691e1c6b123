"""A Linear layer that computes on integers. Its tensors: `mixdq.runtime.layout`. Its kernel: `mixdq.runtime.layer`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from mixdq.quant.bos import BosRow
from mixdq.runtime.before import NOTHING, Before
from mixdq.runtime.kernel import JoiningKernel, Kernel
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.opaque import linear
from mixdq.types.tensors import QParams, QTensor


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]  # nn.Linear calls its bias never None
    """`nn.Linear` with a quantized weight and, unless weight-only, a quantized input; made by the two class methods."""

    channel_axis = -1

    @classmethod
    def from_float(
        cls,
        module: nn.Linear,
        layout: LayerLayout,
        parts: Sequence[QTensor],
        activation: Sequence[QParams] | None,
        bos: BosRow | None,
        *,
        backend: str,
    ) -> Self:
        """Return the quantized successor of a float layer, which is left as it was; the bias is shared."""
        self = cls._like(module)
        self._hold_parts(layout, backend, parts, activation, bos, module.bias)
        return self

    @classmethod
    def empty(cls, module: nn.Linear, layout: LayerLayout, *, backend: str) -> Self:
        """Return a layer with tensors of the right shapes and no content, on the device of `module` (meta, usually)."""
        self = cls._like(module)
        self._hold_empty(layout, backend, module)
        return self

    @classmethod
    def _like(cls, module: nn.Linear) -> Self:
        self = cls(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        return self.train(module.training)

    def to_float(self, dtype: torch.dtype) -> nn.Linear:
        """Return a float layer of the weight that the codes stand for; a BOS row is not kept."""
        module = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        self._fill(module, dtype)
        return module

    def traced(self, x: Tensor, before: Before = NOTHING, added: Tensor | None = None) -> Tensor:
        """Return `run(x)`, or `run_folded`, as an operator that says the output's shape before it runs."""
        return linear(x, self.handle, self.out_features, before, added)

    def joining(self, input: Tensor) -> JoiningKernel | None:
        """Return the kernel of the whole product, bound for such an input, where it is kept and others can join it."""
        self.kernel_for(input)
        parts = () if self._bound is None else self._bound.parts
        return parts[0] if len(parts) == 1 and isinstance(parts[0], JoiningKernel) else None

    def take(self, product: Kernel) -> None:
        """Run on another kernel of the same product, and memory, from now on in the place of the only one it has."""
        bound = self._bound
        assert bound is not None
        assert len(bound.parts) == 1
        self._bound = replace(bound, kernel=self._compose((product,), bound.dtype), parts=(product,))

    def check_shape(self, shape: Sequence[int]) -> None:
        """Return if an input of this shape can be the layer's; raise ValueError otherwise."""
        if not shape or shape[-1] != self.in_features:
            raise ValueError(f"{self.layout.name}: expected an input [..., {self.in_features}], found {list(shape)}")
