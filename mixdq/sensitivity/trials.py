"""What there is to be found out: a layer, a role and a width, and the metrics to score it by. Needs no torch."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from mixdq.types.layers import Group, LayerTable
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.scores import Role, ScoreKey


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One layer with its weight or its input at `num_bits`, to be scored by `metrics`."""

    layer: str
    role: Role
    num_bits: int
    metrics: tuple[str, ...]

    @property
    def bits(self) -> LayerBits:
        """The widths of the layer in this trial."""
        if self.role == "weight":
            return LayerBits(weight=self.num_bits, activation=FLOAT_BITS)
        return LayerBits(weight=FLOAT_BITS, activation=self.num_bits)

    @property
    def keys(self) -> tuple[ScoreKey, ...]:
        """The keys of its scores."""
        return tuple((self.layer, self.role, self.num_bits, metric) for metric in self.metrics)


def list_trials(
    table: LayerTable,
    weight_bits: Mapping[Group, Sequence[int]],
    activation_bits: Mapping[Group, Sequence[int]],
    metric_of: Mapping[Group, Sequence[str]],
) -> tuple[Trial, ...]:
    """Return all trials, layer by layer in table order, weights before activations, widths as given.

    A group without metrics or widths is not measured; 16 bits, which change nothing, are left out.
    """
    widths_of: tuple[tuple[Role, Mapping[Group, Sequence[int]]], ...] = (
        ("weight", weight_bits),
        ("activation", activation_bits),
    )
    return tuple(
        Trial(layer=layer.name, role=role, num_bits=num_bits, metrics=tuple(metric_of[layer.group]))
        for layer in table
        for role, widths in widths_of
        for num_bits in widths.get(layer.group, ())
        if num_bits != FLOAT_BITS and metric_of.get(layer.group)
    )


def by_metric(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Return what is sketched together: metric, in alphabetical order -> its trials, of this metric alone."""
    return {
        metric: [replace(trial, metrics=(metric,)) for trial in trials if metric in trial.metrics]
        for metric in sorted({metric for trial in trials for metric in trial.metrics})
    }


def without(trials: Sequence[Trial], done: Set[ScoreKey]) -> list[Trial]:
    """Return the trials with the metrics that are not known yet; those with none left out."""
    left = []
    for trial in trials:
        metrics = tuple(metric for metric, key in zip(trial.metrics, trial.keys, strict=True) if key not in done)
        if metrics:
            left.append(replace(trial, metrics=metrics))
    return left
