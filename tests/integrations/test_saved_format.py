import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from mixdq.errors import ArtifactFormatError
from mixdq.integrations.saved_format import FORMAT_VERSION, SavedModel, from_json, to_json
from mixdq.types.plan import BitPlan, Budget, LayerBits, SolverFacts

SAVED = SavedModel(
    plan=BitPlan(
        name="k=0.9",
        layers={
            "conv_in": LayerBits(weight=16, activation=16),
            "to_k": LayerBits(weight=4, activation=8),
            "join": LayerBits(weight=2, activation=16),
        },
        budget=Budget(weight_bits=4.0, keep=("conv_in",), protect=0.02),
        solver=SolverFacts(solver="highs", objective="raw", values={"weight.content": 4.25}, content_quality_ratio=0.9),
        origin={"model": "abc"},
    ),
    symmetric=False,
    input_splits={"join": (4, 2)},
    bos_layers=("to_k",),
    calibration={"prompts": "def"},
)


def written() -> dict[str, Any]:
    """What a reader of config.json gets: through JSON text, keys sorted, as diffusers writes it."""
    return json.loads(json.dumps(to_json(SAVED, "reference"), sort_keys=True))


def test_what_is_written_is_read_back_whole() -> None:
    saved, backend = from_json(written())
    assert saved == SAVED
    assert backend == "reference"


def test_a_bare_plan_survives_too() -> None:
    bare = SavedModel(plan=BitPlan(name="p", layers={"a": LayerBits(weight=8, activation=8)}))
    assert from_json(json.loads(json.dumps(to_json(bare, "auto")))) == (bare, "auto")


def test_layouts_are_of_the_quantized_layers_alone() -> None:
    layouts = SAVED.layouts()
    assert list(layouts) == ["to_k", "join"]
    assert layouts["to_k"].bos
    assert not layouts["to_k"].symmetric
    assert layouts["join"].splits == (4, 2)


def test_dynamic_activations_are_written_and_static_ones_are_what_stands_there_without_them() -> None:
    dynamic = replace(SAVED, activations="dynamic")
    config = json.loads(json.dumps(to_json(dynamic, "auto")))
    assert from_json(config) == (dynamic, "auto")
    assert all(layout.dynamic for layout in dynamic.layouts().values())
    assert "activations" not in written()
    assert from_json({**written(), "activations": "static"})[0] == SAVED
    assert not any(layout.dynamic for layout in SAVED.layouts().values())


def test_a_newer_format_says_to_update() -> None:
    config = {**written(), "format_version": FORMAT_VERSION + 1, "something_new": 1}
    with pytest.raises(ArtifactFormatError, match=f"format_version = {FORMAT_VERSION + 1}.*update mixdq"):
        from_json(config)


def test_floats_are_a_format_of_their_own_which_older_readers_refuse() -> None:
    layers = {**SAVED.plan.layers, "to_v": LayerBits.parse("W8A8 float")}
    floats = replace(SAVED, plan=replace(SAVED.plan, layers=layers))
    config = json.loads(json.dumps(to_json(floats, "auto")))
    assert (config["format_version"], written()["format_version"]) == (2, 1)
    assert from_json(config) == (floats, "auto")
    # Asymmetric as the others are, it has no zero points.
    assert floats.layouts()["to_v"].symmetric
    for wrong in ({**config, "format_version": 1}, {**written(), "format_version": 2}):
        with pytest.raises(ArtifactFormatError, match="format_version"):
            from_json(wrong)


HOSTILE: dict[str, Any] = {
    "format_version": ["1", 0, -1, None, True, 1.0],
    "quant_method": ["bitsandbytes", 7],
    "backend": [None, 3],
    "symmetric": ["yes", 1, None],
    "activations": ["Dynamic", True, None, ["dynamic"]],
    "plan": [None, [], {}, "plan.toml"],
    "plan.name": [None, 4],
    "plan.layers": [
        None,
        [],
        {},
        {"a": "W9A8"},
        {"a": "W4A8 "},
        {"a": "W4A8 float"},
        {"a": "W8A8 float"},
        {"a": 4},
        {"a": None},
    ],
    "plan.budget": [
        [],
        {},
        {"weight_bits": "4"},
        {"weight_bits": 4, "shell": "rm"},
        {"weight_bits": 4, "keep": "conv_in"},
        {"weight_bits": 4, "weight_choices": {"content": [9]}},
        {"weight_bits": 4, "weight_choices": {"nobody": [8]}},
    ],
    "plan.solver": [
        "highs",
        {"solver": "highs"},
        {"__class__": "x"},
        {"solver": "highs", "objective": "raw", "values": [[[1]]]},
        {"solver": "highs", "objective": "raw", "values": {"a": {"b": 1}}},
    ],
    "plan.origin": [None, {"model": 3}],
    "input_splits": [
        None,
        {"join": [4, 0]},
        {"join": [-1]},
        {"join": ["4"]},
        {"join": 4},
        {"nowhere": [1]},
        {"join": [2**40]},
    ],
    "bos_layers": [None, "to_k", ["nowhere"], [["to_k"]], [None]],
    "calibration": [None, {"prompts": 1}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in HOSTILE.items() for value in values])
def test_hostile_values_are_refused_with_our_error(key: str, value: object) -> None:
    config = copy.deepcopy(written())
    *path, last = key.split(".")
    place = config
    for step in path:
        place = place[step]
    place[last] = value
    with pytest.raises(ArtifactFormatError, match="quantization_config"):
        from_json(config)


@pytest.mark.parametrize("key", sorted(written()))
def test_missing_keys_are_refused(key: str) -> None:
    config = written()
    del config[key]
    with pytest.raises(ArtifactFormatError, match=key):
        from_json(config)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ArtifactFormatError, match="on_load"):
        from_json({**written(), "on_load": "import os"})


def test_a_million_layers_are_refused_before_they_are_read() -> None:
    config = written()
    config["plan"]["layers"] = dict.fromkeys(map(str, range(1_000_000)), "nonsense")
    with pytest.raises(ArtifactFormatError, match="1000000 layers"):
        from_json(config)


def test_what_later_versions_add_with_a_default_may_be_absent() -> None:
    config = written()
    del config["plan"]["budget"]["keep"]
    assert from_json(config)[0].plan.budget == replace(SAVED.plan.budget, keep=())


@pytest.mark.parametrize("key", ["plan.layers", "input_splits", "calibration", "format_version"])
def test_complaints_stay_short_however_long_the_names_are(key: str) -> None:
    config, long = written(), "x" * 10**6
    values = {"plan.layers": {long: long}, "input_splits": {long: [1]}, "calibration": {long: 1}}
    *path, last = key.split(".")
    place = config if not path else config[path[0]]
    place[last] = values.get(key, 10**4000)
    with pytest.raises(ArtifactFormatError) as error:
        from_json(config)
    assert len(str(error.value)) < 400


def test_nesting_without_end_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for place in ("budget", "solver"):
        config = written()
        config["plan"][place] = {"values": deep}
        with pytest.raises(ArtifactFormatError):
            from_json(config)
