"""Who runs the trials of a sensitivity analysis: engines by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from mixdq.sensitivity.engines.local import run_local
from mixdq.sensitivity.trial import Trial
from mixdq.types.scores import Score


class Engine(Protocol):
    """Runs `score` on every trial and yields the results in the order of the trials, each as soon as it is known."""

    def __call__(
        self, trials: Sequence[Trial], score: Callable[[Trial], tuple[Score, ...]]
    ) -> Iterator[tuple[Score, ...]]:
        """Yield the scores of each trial."""
        ...


ENGINES: Mapping[str, Engine] = MappingProxyType({"local": run_local})
