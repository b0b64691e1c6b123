"""The engine that needs nothing: one task after another, in this process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from mixdq.sensitivity.desk import Desk
from mixdq.sensitivity.engines.base import Team

A = TypeVar("A")
T = TypeVar("T")


@contextmanager
def run_local(desk: Desk) -> Iterator[Team]:
    """Yield a team of one: this process."""
    yield _Alone(desk)


class _Alone:
    workers = 1

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def map(self, do: Callable[[Desk, A], T], tasks: Sequence[A]) -> Iterator[T]:
        """Yield the results in order, each task done when it is asked for."""
        for task in tasks:
            yield do(self._desk, task)
