"""How far an analysis is: what its scores are, and what it would measure next. Needs no torch."""

import math
from collections.abc import Sequence

from mixdq.sensitivity.hybrid import next_trials
from mixdq.sensitivity.resume import Sink
from mixdq.sensitivity.trials import Trial
from mixdq.types.layers import LayerTable
from mixdq.types.scores import ROLES, Role, SensitivityTable

EXACT_SHARE = 0.08


def is_complete(
    trials: Sequence[Trial], table: LayerTable, sink: Sink, *, method: str = "exact", exact_share: float = EXACT_SHARE
) -> bool:
    """Return whether `sink` holds all that `measure` would for these trials, or did for more; needs no model."""
    if not sink.done >= {key for trial in trials for key in trial.keys}:
        return False
    return any(
        not next_of(some, table, sink, exact_count(some, method, exact_share)) for some in (trials, _held(table, sink))
    )


def _held(table: LayerTable, sink: Sink) -> list[Trial]:
    """Return all trials that there are scores of, in the order of `list_trials`."""
    metrics: dict[tuple[str, Role, int], list[str]] = {}
    for layer, role, bits, metric in sink.done:
        metrics.setdefault((layer, role, bits), []).append(metric)
    place = {layer.name: index for index, layer in enumerate(table)}
    return [
        Trial(layer=layer, role=role, num_bits=bits, metrics=tuple(sorted(metrics[layer, role, bits])))
        for layer, role, bits in sorted(
            (key for key in metrics if key[0] in place), key=lambda key: (place[key[0]], ROLES.index(key[1]), key[2])
        )
    ]


def exact_count(trials: Sequence[Trial], method: str, exact_share: float) -> int:
    """Return how many trials are to be measured in the place of estimates."""
    return math.ceil(exact_share * len(trials)) if method == "hybrid" else 0


def next_of(trials: Sequence[Trial], table: LayerTable, sink: Sink, count: int) -> list[Trial]:
    """Return what to measure now for `count` to have been measured in the end; see `hybrid`."""
    known = {score.key: score for score in sink.table.scores}
    return next_trials(trials, {layer.name: layer for layer in table}, sink.estimates, known, count)


def measured(trials: Sequence[Trial], sink: Sink) -> int:
    """Return how many trials have taken the place of an estimate."""
    known = {score.key: score for score in sink.table.scores}
    return sum(all(key in sink.estimates and known[key].stderr is None for key in trial.keys) for trial in trials)


def known_table(trials: Sequence[Trial], sink: Sink) -> SensitivityTable:
    """Return the scores asked for, whatever else is known."""
    scores_of = {score.key: score for score in sink.table.scores}
    return SensitivityTable(
        scores=tuple(scores_of[key] for trial in trials for key in trial.keys), origin=sink.table.origin
    )
