"""What a call of a module depends on beside its arguments, held fast, so that any change to it is noticed.

Everything that can be reached from the attributes of its modules counts: objects by identity, numbers and strings by
value, lists and dictionaries by what is in them, tensors by identity, type, and where their memory is. Not what is in
that memory: whoever holds an address reads new numbers too. Closures and globals are not looked into.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import is_dataclass
from functools import partial
from itertools import chain
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size}
_SEALED = (type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, partial)
_SEALED_PACKAGES = {"torch", "logging"}


class Snapshot:
    """A module as it is now. What it consists of is kept alive, memory of tensors too, until the snapshot is let go.

    `beside` is an object that is not looked into.
    """

    def __init__(self, module: nn.Module, beside: object = None) -> None:
        self._module, self._beside = module, beside
        self._look()

    def holds(self) -> bool:
        """Return whether all of it is as it was: milliseconds for thousands of modules."""
        same = (
            list(map(len, self._containers)) == self._lengths
            and all(map(is_, map(type, self._objects), self._types))
            and all(map(is_, self._values(), self._kept))
            and list(map(Tensor.data_ptr, self._tensors)) == self._addresses
        )
        return same or self._is_equal()

    def same_as(self, other: "Snapshot") -> bool:
        """Return whether nothing differs between two snapshots of one module."""
        return self._facts == other._facts

    def _is_equal(self) -> bool:
        """Look again, for equal numbers may be other objects."""
        now = Snapshot(self._module, self._beside)
        if not self.same_as(now):
            return False
        vars(self).update(vars(now))
        return True

    def _look(self) -> None:
        self._facts: list[object] = []
        self._objects: list[object] = []
        self._dicts: list[dict[Any, Any]] = []
        self._lists: list[Any] = []
        self._tensors: list[Tensor] = []
        seen: dict[int, int] = {id(self._beside): 0}
        ahead: deque[object] = deque([self._module])
        while ahead:
            ahead.extend(self._note(ahead.popleft(), seen))
        self._types = list(map(type, self._objects))
        # Most are empty, such as modules' hooks: their lengths tell all.
        self._containers = [*self._dicts, *self._lists]
        self._lengths = list(map(len, self._containers))
        self._dicts, self._lists = list(filter(None, self._dicts)), list(filter(None, self._lists))
        self._kept = list(self._values())
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        # A tensor may be given other memory; what it had must not become another's.
        self._memory = [tensor.detach() for tensor in self._tensors]

    def _note(self, thing: Any, seen: dict[int, int]) -> Iterable[object]:
        """Enter a thing, and return what is in it."""
        kind = type(thing)
        if kind in _PLAIN:
            self._facts.append((kind, thing))
            return ()
        is_known, is_container = id(thing) in seen, isinstance(thing, dict | list | tuple | set | frozenset)
        number = seen.setdefault(id(thing), len(seen))
        self._facts.append((kind, number, len(thing)) if is_container else (kind, id(thing)))
        if is_known:
            return ()
        if kind in (Tensor, nn.Parameter):
            self._tensors.append(thing)
            self._facts.append((thing.data_ptr(), thing.dtype, thing.shape))
        elif isinstance(thing, dict):
            self._dicts.append(thing)
            return chain(thing.keys(), thing.values())
        elif is_container:
            self._lists.append(thing)
            return thing  # type: ignore[no-any-return]
        elif _is_open(thing):
            self._objects.append(thing)
            return (vars(thing),)
        return ()

    def _values(self) -> Iterator[object]:
        return chain(chain.from_iterable(map(dict.values, self._dicts)), chain.from_iterable(self._lists))


def _is_open(thing: Any) -> bool:
    """Return whether an object's attributes may change, and matter."""
    if isinstance(thing, _SEALED) or not hasattr(thing, "__dict__"):
        return False
    if isinstance(thing, nn.Module | Tensor):
        return True
    kind = type(thing)
    frozen = is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return not frozen and kind.__module__.partition(".")[0] not in _SEALED_PACKAGES
