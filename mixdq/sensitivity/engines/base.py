"""What an engine is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from mixdq.sensitivity.desk import Desk

A = TypeVar("A")
T = TypeVar("T")


class Team(Protocol):
    """Whoever does the tasks of an analysis, for as long as it lasts."""

    @property
    def workers(self) -> int:
        """How many tasks are done at a time."""
        ...

    def map(self, do: Callable[[Desk, A], T], tasks: Sequence[A]) -> Iterator[T]:
        """Yield what a method of `Desk` returns for each task, in order, each as soon as it is known.

        The results do not depend on the team. What a task raises is raised where its result would come.
        """
        ...


class Engine(Protocol):
    """Makes a team, whose members do what this process could do at `desk`."""

    def __call__(self, desk: Desk, /) -> AbstractContextManager[Team]:
        """Return the team, to be used in a `with` block."""
        ...
