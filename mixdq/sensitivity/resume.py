"""Scores and vectors kept as they are found, so that an interrupted analysis continues where it stopped.

What the analysis asks of a keeper, and the one in memory; the files are `mixdq.store.table_file.SensitivityLog` and
`mixdq.store.sketch_file.SketchLog`.
"""

from collections.abc import Iterable, Mapping, Set
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixdq.types.scores import Score, ScoreKey, SensitivityTable, VectorKey

Floats = NDArray[np.float64]


class Sink(Protocol):
    """Where scores go, and where those of an earlier run come from.

    Whoever opens it vouches that its scores are of the same model, prompts and settings; `table.origin` says of which.
    """

    @property
    def done(self) -> Set[ScoreKey]:
        """What is known: (layer, role, bits, metric)."""
        ...

    @property
    def table(self) -> SensitivityTable:
        """All scores so far."""
        ...

    @property
    def estimates(self) -> Mapping[ScoreKey, Score]:
        """All scores that came with a standard error, those too that an exact one has replaced since."""
        ...

    def append(self, score: Score) -> None:
        """Keep one more score, or an exact one in the place of an estimate."""
        ...


class VectorSink(Protocol):
    """Where the products of vectors go, [samples, trials] each, and where those of an earlier run come from.

    In memory a dict will do. Whoever opens another vouches as for a `Sink`, and for the trials and their order.
    """

    def __contains__(self, key: VectorKey, /) -> bool:
        """Say whether a vector is known."""
        ...

    def __getitem__(self, key: VectorKey, /) -> Floats:
        """Return its products."""
        ...

    def update(self, found: Mapping[VectorKey, Floats], /) -> None:
        """Keep more vectors."""
        ...


class MemorySink:
    """Keeps scores in memory, for one run."""

    def __init__(self, origin: Mapping[str, str], scores: Iterable[Score] = ()) -> None:
        self._origin = origin
        self._scores: dict[ScoreKey, Score] = {}
        self.estimates: dict[ScoreKey, Score] = {}
        for score in scores:
            self.append(score)

    @property
    def done(self) -> Set[ScoreKey]:
        """What is known: (layer, role, bits, metric)."""
        return self._scores.keys()

    @property
    def table(self) -> SensitivityTable:
        """All scores so far, in the order they came."""
        return SensitivityTable(scores=tuple(self._scores.values()), origin=self._origin)

    def append(self, score: Score) -> None:
        """Keep one more score, or an exact one in the place of an estimate."""
        if score.stderr is not None:
            self.estimates[score.key] = score
        self._scores[score.key] = score
