"""Every script in examples/ runs offline on the embedded SDXL model, says numbers and leaves a picture."""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from mixdq.runtime.kernels import native

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

SETTINGS = {
    "save_and_open": [],
    "on_the_fly": [],
    "image_to_image": [],
    "samplers": [],
    "prompts": [],
    "control": [],
    "offload": [],
    "compile_blocks": ["--compiler", "aot_eager"],
    "carry_a_plan": ["--prompts", "2"],
    "train_lora": ["--steps", "2"],
}
"""The script -> arguments that make it quick."""

SAYS = {
    "save_and_open": "the opened model draws the same picture: True",
    "offload": "the same picture is True",
    "train_lora": "unloaded, it draws as before: True",
    "carry_a_plan": "holds",
}

NEEDS_A_MODEL = {"quantize"}


def test_every_script_is_run_here_and_told_of_in_the_readme() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == SETTINGS.keys() | NEEDS_A_MODEL
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert not [name for name in scripts if f"`{name}.py`" not in readme]


@pytest.mark.parametrize("name", SETTINGS)
def test_script_runs_and_leaves_its_picture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if native.trouble():
        pytest.skip(str(native.trouble()))
    if name == "train_lora" and not find_spec("peft"):
        pytest.skip("LoRA needs peft: pip install peft")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(tmp_path), *SETTINGS[name]])
    with torch.random.fork_rng(devices=()):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert SAYS.get(name, " dB") in said
    assert "False" not in said
    assert said.splitlines()[-1] == str(tmp_path / f"{name}.png")
    with Image.open(tmp_path / f"{name}.png") as picture:
        darkest, lightest = picture.convert("L").getextrema()
    assert lightest - darkest > 100
