from pathlib import Path

import pytest
import torch

from mixdq.config import dump_config
from mixdq.errors import ConfigError, PromptError
from mixdq.sensitivity.engines.local import run_local
from mixdq.workflow.settings import (
    calibration_prompts,
    configured,
    device_of,
    dtype_of,
    engine_of,
    evaluation_prompts,
    generation_of,
    load_model,
    read_prompts,
    selection_prompts,
    sensitivity_prompts,
    with_budget,
    with_engine,
)


def test_fresh_settings_hold_what_was_given_and_defaults(tmp_path) -> None:
    config = configured(tmp_path, "m", steps=2, seed=7, size=64, keep=["conv_in"], prompts=Path("p.txt"))
    assert (config.generation.steps, config.generation.seed) == (2, 7)
    assert config.generation.height == config.generation.width == 64
    assert config.allocation.keep == ("conv_in",)
    assert config.calibration.prompts == "p.txt"
    assert config.allocation.weight_bits == 4


def test_activations_are_static_until_told_otherwise(tmp_path, configure, model) -> None:
    assert configured(tmp_path, "m").conversion.activations == "static"
    (tmp_path / "config.toml").write_text(dump_config(configured(tmp_path, str(model), activations="dynamic")))
    assert configured(tmp_path, str(model)).conversion.activations == "dynamic"
    with pytest.raises(ConfigError, match=r"conversion\.activations: expected 'static' or 'dynamic', got 'Dynamic'"):
        configured(tmp_path, str(model), activations="Dynamic")


def test_settings_of_a_folder_stay_but_for_what_is_given(tmp_path, configure, model) -> None:
    (tmp_path / "config.toml").write_text(dump_config(configure()))
    assert configured(tmp_path, str(model)) == configure()
    assert configured(tmp_path, str(model), seed=3) == configure(generation={"seed": 3})


def test_folder_of_another_model_is_refused(tmp_path, configure) -> None:
    (tmp_path / "config.toml").write_text(dump_config(configure()))
    (tmp_path / "layers.json").touch()
    with pytest.raises(ConfigError, match="choose another folder for 'other'"):
        configured(tmp_path, "other")


def test_folder_whose_model_could_not_be_opened_takes_another_name_for_it(tmp_path, configure) -> None:
    (tmp_path / "config.toml").write_text(dump_config(configure(model={"path": "mispelt"})))
    assert configured(tmp_path, "misspelt") == configure(model={"path": "misspelt"})


def test_settings_go_along_with_a_plan_but_for_model_budget_and_backend(tmp_path, configure) -> None:
    theirs = configure(
        generation={"steps": 2}, conversion={"backend": "cpu", "symmetric": False}, model={"variant": "fp16"}
    )
    config = configured(tmp_path, "other", like=theirs, seed=3)
    assert config.generation == theirs.generation.model_copy(update={"seed": 3})
    assert (config.calibration, config.selection, config.evaluation) == (
        theirs.calibration,
        theirs.selection,
        theirs.evaluation,
    )
    assert (config.conversion.symmetric, config.conversion.backend) == (False, "auto")
    assert (config.model.path, config.model.variant, config.allocation.weight_bits) == ("other", None, 4)


def test_one_weight_budget_replaces_the_other(configure) -> None:
    in_bytes = with_budget(configure(), weight_mib=1.5)
    assert in_bytes.allocation.weight_bits is None
    assert in_bytes.allocation.weight_bytes == 1.5 * 2**20
    assert with_budget(in_bytes, weight_bits=5.0) == configure()
    assert with_budget(in_bytes) == in_bytes
    with pytest.raises(ConfigError, match="expected one of them"):
        with_budget(in_bytes, weight_bits=4, weight_mib=1)


def test_time_takes_the_place_of_bits_and_brings_the_joint_program(configure) -> None:
    timed = with_budget(configure(), latency_ms=50.0).allocation
    assert (timed.program, timed.objective, timed.latency_ms) == ("joint", "linear", 50.0)
    assert (timed.weight_bits, timed.activation_bits) == (None, 16.0)
    both = with_budget(configure(), latency_ms=50.0, weight_mib=1.0, activation_bits=8.0).allocation
    assert (both.weight_bytes, both.latency_ms, both.activation_bits) == (2**20, 50.0, 8.0)
    back = with_budget(
        configure().model_copy(update={"allocation": timed}), weight_bits=5.0, program="split"
    ).allocation
    assert (back.program, back.objective, back.latency_ms, back.activation_bits) == ("split", "linear", None, 8.0)
    same = with_budget(configure()).allocation
    assert same == configure().allocation


def test_prompts_of_each_step(tmp_path, configure) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join("abcd"))
    config = configure(calibration={"prompts": str(path), "num_prompts": 3})
    assert calibration_prompts(config) == ("a", "b", "c")
    assert sensitivity_prompts(config) == selection_prompts(config) == ("a",)
    assert evaluation_prompts(config) == ("c", "d")


def test_own_prompts_are_enough_for_the_defaults(configure) -> None:
    assert len(set(calibration_prompts(configure(calibration={"num_prompts": 64})))) == 64


def test_folder_in_place_of_prompts_is_refused(tmp_path) -> None:
    with pytest.raises(PromptError, match="a folder"):
        read_prompts(tmp_path)


def test_batch_size_does_not_decide_what_a_picture_is(configure) -> None:
    same = [configure(generation={"batch_size": size}) for size in (1, 8)]
    assert generation_of(same[0]) == generation_of(same[1])
    assert generation_of(configure(generation={"seed": 1})) != generation_of(configure())


def test_device_and_type_are_the_configured_ones(configure) -> None:
    config = configure(model={"device": "cpu", "dtype": "bfloat16"})
    assert device_of(config) == "cpu"
    assert dtype_of(config) == torch.bfloat16
    assert dtype_of(configure(model={"device": "cpu"})) == torch.float32
    assert device_of(configure()) == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["toaster", "cuda:99", "cpu:x"])
def test_device_that_is_not_here_is_refused_by_name(configure, device) -> None:
    with pytest.raises(ConfigError, match=f"model.device = '{device}'"):
        device_of(configure(model={"device": device}))


def test_model_is_loaded_as_configured(configure) -> None:
    assert load_model(configure(model={"dtype": "bfloat16"})).unet.dtype == torch.bfloat16


def test_an_engine_is_kept_until_another_is_named(configure) -> None:
    ray = with_engine(configure(), engine="ray", address="head:6379")
    assert (ray.sensitivity.engine, ray.sensitivity.address) == ("ray", "head:6379")
    assert with_engine(ray) == ray
    assert with_engine(ray, address="auto").sensitivity.engine == "ray"
    assert engine_of(with_engine(ray, engine="local"), in_memory=False) is run_local
    with pytest.raises(ConfigError, match="the engine 'local' has none"):
        with_engine(configure(), address="head:6379")


def test_no_other_process_reads_a_model_that_is_in_memory(configure) -> None:
    assert engine_of(configure(), in_memory=True) is run_local
    with pytest.raises(ConfigError, match="in memory alone"):
        engine_of(with_engine(configure(), engine="ray"), in_memory=True)
