"""What the layers of a UNet make of the text, and of the time step, which very many of them read: made together.

Within one call of a model the first layer that asks has the outputs of its whole set made; the others find theirs. A
set ends at some size, so that few outputs wait at a time. Whoever is given another tensor than the first of its set, or
is in one whose kernels cannot be joined, computes for itself. Nothing is kept from call to call: a tensor may be
written to in between.
"""

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from mixdq.runtime.before import Before
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.together import run_joined

READ_AT_ONCE = 2**26
"""Bytes of weights in a set."""

Find = Callable[[], Sequence[QuantizedLinear]]


class Reading:
    """The sets of one call; `find` returns, by kind, the layers that read alike, in the order of the model."""

    def __init__(self, find: dict[str, Find]) -> None:
        self._find = find
        self._set_of: dict[str, dict[QuantizedLinear, _Set]] = {}

    def output(self, kind: str, layer: QuantizedLinear, x: Tensor, before: Before) -> Tensor | None:
        """Return `layer(before(x))`, once; None where `layer` has to be called.

        All of a kind are given the same `before`.
        """
        if kind not in self._set_of:
            self._set_of[kind] = {each: one for one in _sets(self._find[kind]()) for each in one.layers}
        own = self._set_of[kind].get(layer)
        return None if own is None else own.output(layer, x, before)


class _Set:
    def __init__(self, layers: Sequence[QuantizedLinear]) -> None:
        # Neighbours of like weights are one product.
        self.layers = sorted(layers, key=lambda layer: (str(layer.layout.bits), layer.layout.bos))
        self._source: Tensor | None = None
        self._version = 0
        self._outputs: dict[QuantizedLinear, Tensor] = {}

    def output(self, layer: QuantizedLinear, x: Tensor, before: Before) -> Tensor | None:
        if self._source is None:
            self._source, self._version = x, _version_of(x)
            self._outputs = dict(zip(self.layers, run_joined(self.layers, x, before) or (), strict=False))
        same = self._source is x and self._version == _version_of(x)
        return self._outputs.pop(layer, None) if same else None


def _version_of(x: Tensor) -> int:
    """Return how often a tensor was written to; of inference tensors nobody knows."""
    return 0 if x.is_inference() else x._version


class Begun:
    """What the last call of a model has begun. Without a `__dict__`, for no graph depends on it."""

    __slots__ = ("reading",)

    def __init__(self) -> None:
        self.reading: Reading | None = None


# The one of the call that began last. Of another thread's call of the same model, which begins later, it knows nothing.
_READING: ContextVar[ReferenceType[Reading] | None] = ContextVar("_READING", default=None)


def begin(begun: Begun, find: dict[str, Find]) -> None:
    """Say that a call of the model that has `begun` begins: what `read` finds until the next one belongs to it."""
    begun.reading = Reading(find)
    _READING.set(ref(begun.reading))


def read(kind: str, layer: QuantizedLinear, x: Tensor, before: Before) -> Tensor | None:
    """Return the layer's output if a model's call is under way that has it; see `Reading.output`."""
    if torch.compiler.is_compiling():
        return None
    under_way = _READING.get()
    own = None if under_way is None else under_way()
    return None if own is None else own.output(kind, layer, x, before)


def _sets(layers: Sequence[QuantizedLinear]) -> Iterator[_Set]:
    """Cut layers into sets of one width of input, none larger than `READ_AT_ONCE`."""
    for width in dict.fromkeys(layer.in_features for layer in layers):
        gathered: list[QuantizedLinear] = []
        size = 0
        for layer in layers:
            if layer.in_features != width:
                continue
            own = layer.in_features * layer.out_features * layer.layout.bits.weight // 8
            if gathered and size + own > READ_AT_ONCE:
                yield _Set(gathered)
                gathered, size = [], 0
            gathered.append(layer)
            size += own
        if gathered:
            yield _Set(gathered)
