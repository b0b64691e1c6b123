"""What an engine is."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from mixdq.sensitivity.trial import Trial, TrialScorer
from mixdq.types.scores import Score


class Engine(Protocol):
    """Scores every trial and yields the results in the order of the trials, each as soon as it is known.

    The scores do not depend on the engine. What a trial raises is raised where its scores would come.
    """

    def __call__(self, trials: Sequence[Trial], scorer: TrialScorer, /) -> Iterator[tuple[Score, ...]]:
        """Yield the scores of each trial."""
        ...
