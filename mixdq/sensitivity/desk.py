"""What a process does its tasks with: the model, and what is kept from one task to the next.

There are two kinds of task: a trial to be scored exactly, and a slice of a sketch. What comes of one depends on nothing
but the task itself, so that any process with the same model may do it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mixdq.sensitivity.products import Products
from mixdq.sensitivity.resume import Floats
from mixdq.sensitivity.scorer import TrialScorer
from mixdq.sensitivity.trials import Trial
from mixdq.types.scores import Score

_NOTHING: Mapping[str, Sequence[Trial]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Vectors of a metric, by their numbers, on one part of the recorded run; see `Products`."""

    metric: str
    part: int
    numbers: tuple[int, ...]


class Desk:
    """Does tasks. `sketched` are the trials of each metric that slices are about, in the order of their products."""

    def __init__(
        self, scorer: TrialScorer, sketched: Mapping[str, Sequence[Trial]] = _NOTHING, *, checkpointing: bool = False
    ) -> None:
        self.scorer, self.sketched, self.checkpointing = scorer, dict(sketched), checkpointing
        self._products: dict[str, Products] = {}

    def score(self, trial: Trial) -> tuple[Score, ...]:
        """Return one score a metric; errors as `TrialScorer`."""
        # Rounding errors of all weights are no longer needed: the sketch comes first.
        self._products.clear()
        return self.scorer(trial)

    def products(self, one: Slice) -> Floats:
        """Return the products of a slice, [vectors, samples, trials]; errors as `Products`."""
        return self._of(one.metric)(one.part, one.numbers)

    def parts(self, metric: str) -> int:
        """Return how many parts the recorded run has for a metric."""
        return self._of(metric).parts

    def _of(self, metric: str) -> Products:
        if metric not in self._products:
            self._products[metric] = Products(
                self.sketched[metric], self.scorer, metric, checkpointing=self.checkpointing
            )
        return self._products[metric]
