import random

import pytest

from mixdq.sensitivity.hybrid import next_trials
from mixdq.sensitivity.trials import Trial
from mixdq.types.layers import LayerSpec
from mixdq.types.scores import Score, ScoreKey

BITS = (2, 4, 8)


def layer(name: str, width: int = 100) -> LayerSpec:
    return LayerSpec(name=name, op="linear", group="quality", weight_shape=(width, 10), input_numel=10, macs=10)


def trials_of(layers: dict[str, LayerSpec]) -> list[Trial]:
    return [Trial(layer=name, role="weight", num_bits=bits, metrics=("sqnr",)) for name in layers for bits in BITS]


def score(trial: Trial, value: float, stderr: float | None = 1.0) -> Score:
    return Score(layer=trial.layer, role="weight", num_bits=trial.num_bits, metric="sqnr", value=value, stderr=stderr)


def searched(
    layers: dict[str, LayerSpec], estimates: dict[ScoreKey, Score], truth: dict[ScoreKey, float], count: int
) -> tuple[list[Trial], dict[ScoreKey, Score]]:
    """What is chosen until nothing is left to choose, and the scores that are known then."""
    trials, known, chosen = trials_of(layers), dict(estimates), []
    while found := next_trials(trials, layers, estimates, known, count):
        for trial in found:
            (key,) = trial.keys
            assert known[key].stderr is not None, "measured twice"
            known[key] = score(trial, truth[key], None)
        chosen += found
    return chosen, known


def made_up(seed: int) -> tuple[dict[str, LayerSpec], dict[ScoreKey, Score], dict[ScoreKey, float]]:
    """Twenty layers whose estimates are off by what they say."""
    rng = random.Random(seed)
    layers = {name: layer(name, rng.choice([50, 100, 400])) for name in (f"kind{i % 4}.{i}" for i in range(20))}
    truth, estimates = {}, {}
    for spec in layers.values():
        level = rng.uniform(0, 30)
        for trial in trials_of({spec.name: spec}):
            (key,) = trial.keys
            truth[key] = level + 6 * trial.num_bits
            estimates[key] = score(trial, truth[key] + rng.gauss(0, 1.0))
    return layers, estimates, truth


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_as_many_are_measured_as_asked_for(count: int) -> None:
    chosen, _ = searched(*made_up(0), count)
    assert len(chosen) == count


def test_nothing_is_measured_that_no_budget_depends_on() -> None:
    chosen, known = searched(*made_up(0), 100)
    assert 30 < len(chosen) < 60
    assert sum(one.stderr is None for one in known.values()) == len(chosen)


@pytest.mark.parametrize("seed", range(5))
def test_an_interrupted_search_goes_on_as_it_would_have(seed: int) -> None:
    layers, estimates, truth = made_up(seed)
    trials = trials_of(layers)
    whole, _ = searched(layers, estimates, truth, 16)
    known, went = dict(estimates), []
    # One trial at a time, as if killed after each.
    while found := next_trials(trials, layers, estimates, known, 16):
        (key,) = found[0].keys
        known[key] = score(found[0], truth[key], None)
        went.append(found[0])
    assert went == whole


def test_what_loses_more_is_measured_first_and_a_layer_that_loses_nothing_last() -> None:
    layers = {name: layer(name) for name in ("loud", "middle", "quiet")}
    levels = {"loud": 0.0, "middle": 10.0, "quiet": 80.0}
    estimates = {trial.keys[0]: score(trial, levels[trial.layer] + 6.0 * trial.num_bits) for trial in trials_of(layers)}
    truth = {key: one.value for key, one in estimates.items()}
    chosen, _ = searched(layers, estimates, truth, 4)
    assert {trial.layer for trial in chosen} <= {"loud", "middle"}
    assert (chosen[0].layer, chosen[0].num_bits) == ("loud", 2)


def test_sure_estimates_are_left_alone_where_their_kind_has_proved_right() -> None:
    layers = {f"{kind}.{number}": layer(f"{kind}.{number}") for kind in ("right", "wrong") for number in range(8)}
    trials = trials_of(layers)
    estimates = {trial.keys[0]: score(trial, 6.0 * trial.num_bits + 10, 1e-6) for trial in trials}
    # First order is far off in one kind, and exact in the other.
    truth = {key: one.value - (12 if key[0].startswith("wrong") else 0) for key, one in estimates.items()}
    chosen, _ = searched(layers, estimates, truth, 24)
    kinds = [trial.layer.split(".")[0] for trial in chosen]
    assert kinds.count("wrong") > 2 * kinds.count("right")


def test_measuring_what_is_chosen_brings_decisions_nearer_to_the_truth() -> None:
    """At every price, the loss of the widths taken by what is known: less than by the estimates, over many tables."""

    def regret(layers: dict[str, LayerSpec], known: dict[ScoreKey, Score], truth: dict[ScoreKey, float]) -> float:
        total = 0.0
        for price in (10.0**exponent for exponent in range(-9, -1)):
            for name, spec in layers.items():
                keys = [(name, "weight", bits, "sqnr") for bits in BITS]
                cost = {key: price * spec.weight_numel * key[2] for key in keys}
                true = {key: 10 ** (-truth[key] / 10) + cost[key] for key in keys}
                taken = min(keys, key=lambda key: 10 ** (-known[key].value / 10) + cost[key])
                total += (true[taken] - min(true.values())) / sum(true.values())
        return total

    before = after = 0.0
    for seed in range(12):
        layers, estimates, truth = made_up(seed)
        _, known = searched(layers, estimates, truth, 20)
        before += regret(layers, estimates, truth)
        after += regret(layers, known, truth)
    assert after < 0.7 * before
