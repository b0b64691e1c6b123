"""Inputs that changed behind a run folder are noticed, and the step that must be done again is named."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import safetensors.torch

MISSING = {
    "calibrate": ("layers.json", "inspect"),
    "sensitivity": ("calibration.safetensors", "calibrate"),
    "allocate": ("sensitivity.csv", "sensitivity"),
    "choose": ("plans", "allocate"),
    "apply": ("plan.toml", "choose"),
    "evaluate": ("receipt.json", "apply"),
    "benchmark": ("receipt.json", "apply"),
    "report": ("evaluation.json", "evaluate"),
}
"""A verb -> an input of it, and the verb that makes that."""


def advice(done) -> list[str]:
    assert done.exit_code == 1, done.stderr
    assert "Traceback" not in done.stderr
    return shlex.split(re.findall(r"`(mixdq [^`]+)`", done.stderr)[-1])[1:]


@pytest.mark.parametrize("verb", MISSING)
def test_missing_input_is_named_with_the_verb_that_makes_it(run, mixdq, verb) -> None:
    name, maker = MISSING[verb]
    shutil.move(run / name, run.parent)
    done = mixdq(verb, run)
    assert advice(done)[0] == maker
    assert str(run / name) in done.stderr


def test_following_the_advice_step_by_step_ends_well(run, mixdq) -> None:
    config = run / "config.toml"
    # Other prompts for calibration make everything after it stale; nothing is done again without being asked for.
    text = config.read_text(encoding="utf-8").replace("num_prompts = 2", "num_prompts = 3", 1)
    config.write_text(text, encoding="utf-8")
    followed = []
    while (done := mixdq("evaluate", run)).exit_code != 0:
        words = advice(done)
        followed.append(words[0])
        assert len(followed) < 10, followed
        assert mixdq(*words).exit_code == 0
    assert followed == ["calibrate", "sensitivity", "allocate", "choose", "apply"]


def test_table_measured_on_another_calibration_is_not_allocated_from(run, mixdq) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace("num_prompts = 2", "num_prompts = 3", 1), "utf-8")
    assert mixdq("calibrate", run).exit_code == 0
    assert advice(mixdq("allocate", run, "--weight-bits", 6)) == ["sensitivity", str(run)]


@pytest.mark.parametrize(
    "part", ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
)
def test_weights_changed_behind_a_run_are_noticed(tmp_path, models, mixdq, begin, part) -> None:
    model = Path(shutil.copytree(models["sdxl"], tmp_path / "model"))
    out = tmp_path / "out"
    begin(out, model)
    assert mixdq("inspect", model, "-o", out).exit_code == 0
    file = model / part
    tensors = safetensors.torch.load_file(file)
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors[name] += 1
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    done = mixdq("calibrate", out)
    words = advice(done)
    assert words == ["inspect", str(model), "-o", str(out)]
    again = mixdq(*words)
    if part.startswith("vae"):
        assert again.exit_code == 0, again.stderr
    else:
        # Another model altogether: its results do not belong into this folder.
        assert again.exit_code == 1
        assert "its weights are not those that this run began with" in again.stderr
        assert "another folder" in again.stderr
