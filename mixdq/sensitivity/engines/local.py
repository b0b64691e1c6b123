"""The engine that needs nothing: one trial after another, in this process."""

from collections.abc import Callable, Iterator, Sequence

from mixdq.sensitivity.trial import Trial
from mixdq.types.scores import Score


def run_local(trials: Sequence[Trial], score: Callable[[Trial], tuple[Score, ...]]) -> Iterator[tuple[Score, ...]]:
    """Yield the scores of each trial, in order, each as soon as it is known."""
    for trial in trials:
        yield score(trial)
