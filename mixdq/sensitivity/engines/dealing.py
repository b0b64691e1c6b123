"""Pieces of work dealt to workers that may be slow or die, and results put back in order."""

from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Deal(Generic[T]):
    """Pieces 0 .. count - 1, and where each is: not dealt yet, with a worker or two, or done.

    No piece is dealt that is `ahead` or more beyond the first whose result is missing: so many results at most wait
    for an earlier one. A worker that can be given nothing new repeats the oldest piece that one other alone is at, so
    that nobody slow or silent holds up the rest; the first result counts.
    """

    def __init__(self, count: int, ahead: int) -> None:
        self._count, self._ahead = count, ahead
        self._fresh = self._taken = 0
        self._workers: dict[int, int] = {}
        self._results: dict[int, T] = {}

    @property
    def finished(self) -> bool:
        """Whether every result has been taken."""
        return self._taken == self._count

    def deal(self) -> int | None:
        """Return the piece for one more worker; None while there is nothing for it to do."""
        lost, alone = (
            min((piece for piece, workers in self._workers.items() if workers == number), default=None)
            for number in (0, 1)
        )
        if lost is not None:
            piece = lost
        elif self._fresh < min(self._count, self._taken + self._ahead):
            piece = self._fresh
            self._fresh += 1
        elif alone is not None:
            piece = alone
        else:
            return None
        self._workers[piece] = self._workers.get(piece, 0) + 1
        return piece

    def lose(self, piece: int) -> None:
        """Take note that a worker ended without the result of its piece."""
        if piece in self._workers:
            self._workers[piece] -= 1

    def finish(self, piece: int, result: T) -> None:
        """Take note of a result; a second one of the same piece is let go."""
        if self._workers.pop(piece, None) is not None:
            self._results[piece] = result

    def take(self) -> Iterator[T]:
        """Yield the results that come next in order, as far as they are known."""
        while self._taken in self._results:
            result = self._results.pop(self._taken)
            self._taken += 1
            yield result
