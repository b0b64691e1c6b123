"""What a user can get wrong: exit code 1, one line on stderr that names it, no traceback."""

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch


def refused(done) -> str:
    """The error line of a command that was refused as it should be."""
    assert done.exit_code == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not isinstance(done.exception, KeyError | TypeError | ValueError)
    line = done.stderr[done.stderr.index("error: ") :]
    assert done.stdout == ""
    return " ".join(line.split())


def test_folder_that_is_not_there(tmp_path, mixdq) -> None:
    assert "no such folder" in refused(mixdq("quantize", tmp_path / "nowhere", "-o", tmp_path / "out"))


def test_folder_that_is_no_model(tmp_path, mixdq) -> None:
    (tmp_path / "photos").mkdir()
    said = refused(mixdq("quantize", tmp_path / "photos", "-o", tmp_path / "out"))
    assert "photos" in said
    assert "model_index.json" in said


@pytest.mark.parametrize("name", ["NoSuchPipeline", "SanaPipeline"])
def test_pipeline_class_that_no_family_knows(tmp_path, models, mixdq, name) -> None:
    model = Path(shutil.copytree(models["sdxl"], tmp_path / "model"))
    index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    (model / "model_index.json").write_text(json.dumps({**index, "_class_name": name}), encoding="utf-8")
    assert str(model) in refused(mixdq("quantize", model, "-o", tmp_path / "out"))


@pytest.mark.parametrize(
    ("data", "says"), [(None, "no such prompt file"), (b" \n\n", "no prompt in it"), (b"caf\xe9\n", "not UTF-8")]
)
def test_prompt_file_that_cannot_be_used(run, models, mixdq, tmp_path, data, says) -> None:
    prompts = tmp_path / "mine.txt"
    if data is not None:
        prompts.write_bytes(data)
    said = refused(mixdq("quantize", models["sdxl"], "-o", run, "--prompts", prompts))
    assert str(prompts) in said
    assert says in said
    assert str(prompts) in refused(mixdq("generate", models["sdxl"], "-o", tmp_path / "g", "--prompts", prompts))


def test_nothing_to_draw(tmp_path, models, mixdq) -> None:
    assert "nothing to draw" in refused(mixdq("generate", models["sdxl"], "-o", tmp_path))


def test_budget_out_of_reach_says_what_is_possible_and_is_not_kept(run, mixdq) -> None:
    config = (run / "config.toml").read_bytes()
    said = refused(mixdq("allocate", run, "--weight-bits", 3))
    assert "weight_bits = 3 is out of reach" in said
    least = float(re.search(r"give ([\d.]+) to", said)[1])
    assert (run / "config.toml").read_bytes() == config
    assert mixdq("allocate", run, "--weight-bits", least + 0.01).exit_code == 0
    mib = refused(mixdq("allocate", run, "--weight-mib", 0.01))
    assert "weight_bytes" in mib


def test_two_weight_budgets(run, mixdq) -> None:
    assert "one of them" in refused(mixdq("allocate", run, "--weight-bits", 5, "--weight-mib", 1))


def test_unknown_keys_are_all_named_with_the_nearest_known(run, mixdq) -> None:
    config = run / "config.toml"
    text = config.read_text(encoding="utf-8").replace("[allocation]", "[allocation]\nweight_bit = 4\nprotected = 1")
    config.write_text(text, encoding="utf-8")
    for words in (["run", config], ["allocate", run], ["report", run]):
        said = refused(mixdq(*words))
        assert "allocation.weight_bit; did you mean 'weight_bits'" in said
        assert "allocation.protected" in said


@pytest.mark.parametrize("path", ["nowhere.toml", "."])
def test_config_that_cannot_be_read(tmp_path, mixdq, path) -> None:
    assert path.strip(".") in refused(mixdq("run", tmp_path / path))


def test_pattern_that_matches_nothing_is_refused_before_any_long_work(tmp_path, models, mixdq) -> None:
    out = tmp_path / "out"
    said = refused(mixdq("quantize", models["sdxl"], "-o", out, "--keep", "conv_inn*"))
    assert "'conv_inn*' matches none" in said
    assert "conv_in" in said
    assert not (out / "calibration.safetensors").exists()


def test_folder_of_another_models_run(run, models, mixdq) -> None:
    said = refused(mixdq("quantize", models["sd"], "-o", run))
    assert str(models["sdxl"]) in said
    assert "another folder" in said


@pytest.mark.parametrize("verb", ["calibrate", "sensitivity", "allocate", "choose", "apply", "evaluate", "report"])
def test_folder_without_a_run_says_how_one_begins(tmp_path, mixdq, verb) -> None:
    said = refused(mixdq(verb, tmp_path))
    assert f"mixdq inspect MODEL -o {tmp_path}" in said


def test_device_that_is_not_here(run, mixdq) -> None:
    config = run / "config.toml"
    text = config.read_text(encoding="utf-8").replace("[model]", '[model]\ndevice = "xpu:7"')
    config.write_text(re.sub(r'^device = "auto"$', "", text, flags=re.MULTILINE), encoding="utf-8")
    assert "model.device = 'xpu:7'" in refused(mixdq("run", config))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_named_with_its_layer(tmp_path, models, mixdq, begin, value) -> None:
    model = Path(shutil.copytree(models["sdxl"], tmp_path / "model"))
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors[f"{layer}.weight"][0, 0] = torch.tensor(value)
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    said = refused(mixdq("run", begin(tmp_path / "out", model)))
    assert layer in said
    assert not (tmp_path / "out" / "calibration.safetensors").exists()


def test_plan_of_another_model_is_refused_with_every_layer_that_disagrees(run, mixdq) -> None:
    plan = run / "plan.toml"
    text = plan.read_text(encoding="utf-8")
    plan.write_text(text.replace('"conv_in" =', '"conv_inn" =').replace("conv_in =", "conv_inn ="), encoding="utf-8")
    said = refused(mixdq("apply", run))
    assert "conv_in: the plan says nothing of it" in said
    assert "conv_inn: the model has no such layer" in said


def test_plan_of_another_run_is_refused_and_choosing_again_helps(run, mixdq) -> None:
    plan = run / "plan.toml"
    whole = plan.read_bytes()
    text = re.sub(r'^plans = ".*"$', f'plans = "{"0" * 64}"', whole.decode(), flags=re.MULTILINE)
    plan.write_text(text, encoding="utf-8")
    said = refused(mixdq("apply", run))
    assert str(plan) in said
    assert f"`mixdq choose {run}`" in said
    assert mixdq("choose", run).exit_code == 0
    assert plan.read_bytes() == whole
    assert mixdq("apply", run).exit_code == 0


def test_cluster_that_is_not_there_is_refused_before_any_long_work_and_nothing_is_lost(run, models, mixdq) -> None:
    table, settings = run / "sensitivity.csv", run / "config.toml"
    kept = b"".join(table.read_bytes().splitlines(keepends=True)[:20])
    table.write_bytes(kept)
    before = settings.read_bytes()
    ray = ("--engine", "ray", "--address", "127.0.0.1:1")
    assert "address = '127.0.0.1:1': nothing answers there" in refused(mixdq("sensitivity", run, *ray))
    assert table.read_bytes() == kept
    assert settings.read_bytes() == before
    out = run / "new"
    assert "nothing answers there" in refused(mixdq("quantize", models["sdxl"], "-o", out, *ray))
    assert [path.name for path in out.iterdir()] == ["config.toml"]
    assert "say --engine ray as well" in refused(mixdq("run", settings, "--address", "127.0.0.1:1"))
