"""Two sets of pictures of the same prompts and seeds, scored by any metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mixdq.metrics.base import Metric


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The mean of every metric, and its value for each picture in the order of the prompts."""

    means: Mapping[str, float]
    per_picture: Mapping[str, tuple[float, ...]]

    def __getitem__(self, metric: str) -> float:
        return self.means[metric]


def compare(reference: Tensor, candidate: Tensor, prompts: Sequence[str], metrics: Sequence[Metric]) -> Comparison:
    """Return how `candidate` fares against `reference` in each metric, by metric name.

    Both are [pictures, 3, height, width] in 0..1, one picture a prompt.

    Raises:
        ValueError: not as many prompts as pictures, or whatever a metric refuses.
        NonFiniteError: NaN or infinity in a picture.
    """
    if not len(reference) == len(candidate) == len(prompts):
        raise ValueError(f"{len(prompts)} prompts, {len(reference)} reference and {len(candidate)} candidate pictures")
    per_picture = {metric.name: tuple(metric.per_picture(reference, candidate, prompts).tolist()) for metric in metrics}
    means = {name: sum(values) / len(values) for name, values in per_picture.items()}
    return Comparison(means=means, per_picture=per_picture)
