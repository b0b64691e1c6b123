import pytest

from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.sensitivity.trials import Trial, by_metric, list_trials, without
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.layers import LayerTable
from mixdq.types.plan import LayerBits


@pytest.fixture(scope="module")
def table() -> LayerTable:
    pipe = tiny_sdxl_pipeline()
    return list_layers(pipe, find_family(pipe), GenerationSpec(), model="tiny")


def test_trials_cover_every_layer_role_and_width_of_its_group_in_order(table: LayerTable) -> None:
    trials = list_trials(
        table,
        {"content": (2, 4, 16), "quality": (8,)},
        {"content": (8,), "quality": (4, 8)},
        {"content": ("ssim", "sqnr"), "quality": ("sqnr",)},
    )
    expected = []
    for layer in table:
        if layer.group == "content":
            widths = [("weight", 2), ("weight", 4), ("activation", 8)]
            metrics = ("ssim", "sqnr")
        else:
            widths = [("weight", 8), ("activation", 4), ("activation", 8)]
            metrics = ("sqnr",)
        expected += [(layer.name, role, bits, metrics) for role, bits in widths]
    assert [(trial.layer, trial.role, trial.num_bits, trial.metrics) for trial in trials] == expected


def test_a_group_without_widths_or_metrics_is_not_measured(table: LayerTable) -> None:
    weights = {"content": (4,), "quality": (4,)}
    assert not list_trials(table, weights, {}, {})
    trials = list_trials(table, weights, {}, {"content": ("ssim",)})
    assert {table[trial.layer].group for trial in trials} == {"content"}
    assert {trial.role for trial in trials} == {"weight"}


def test_a_trial_quantizes_its_role_alone() -> None:
    assert Trial(layer="a", role="weight", num_bits=4, metrics=()).bits == LayerBits(weight=4, activation=16)
    assert Trial(layer="a", role="activation", num_bits=8, metrics=()).bits == LayerBits(weight=16, activation=8)


def test_trials_come_apart_by_metric_and_by_what_is_known_and_nothing_is_lost(table: LayerTable) -> None:
    both = {"content": ("ssim", "sqnr"), "quality": ("sqnr",)}
    trials = list_trials(table, {"content": (4,), "quality": (4,)}, {}, both)
    keys = {key for trial in trials for key in trial.keys}
    apart = by_metric(trials)
    assert list(apart) == ["sqnr", "ssim"]
    assert {key for of_metric in apart.values() for trial in of_metric for key in trial.keys} == keys
    assert all(trial.metrics == (metric,) for metric, of_metric in apart.items() for trial in of_metric)
    known = {key for key in keys if key[3] == "ssim"}
    left = without(trials, known)
    assert {key for trial in left for key in trial.keys} == keys - known
    assert without(trials, keys) == []
