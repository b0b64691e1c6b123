"""The main job in one command, on both families."""

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import mixdq as package
from mixdq.evaluation.memory import weight_bytes_on_disk
from mixdq.pipeline.generate import GenerationSpec, generate
from mixdq.workflow.pictures import read_pictures

FILES = (
    "calibration.safetensors",
    "evaluation.json",
    "layers.json",
    "plan.toml",
    "receipt.json",
    "report.html",
    "report.md",
    "sensitivity.csv",
)


def times(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("report") and "plots" not in path.parts
    }


class Sources(HTMLParser):
    """Collects what a page would have to fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "data"} | ({"href"} if tag == "link" else set())
        self.found += [value for name, value in attrs if name in names and value]


@pytest.mark.parametrize("family", ["sdxl", "sd"])
def test_one_command_leaves_a_smaller_model_and_the_proof_that_it_is_good(
    tmp_path, models, mixdq, begin, family
) -> None:
    out = tmp_path / "out"
    begin(out, models[family])
    done = mixdq("quantize", models[family], "-o", out)
    assert done.exit_code == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert all((out / name).is_file() for name in FILES)
    assert not [path for path in out.rglob("*") if ".partial" in path.name or ".old" in path.name]

    denoiser = out / "model" / "unet"
    assert weight_bytes_on_disk(denoiser) < 0.6 * weight_bytes_on_disk(models[family] / "unet")
    pictures = read_pictures(sorted((out / "images" / "quantized").glob("*.png")))
    assert package.MixDQError  # the quantizer is entered by the import alone
    pipe = DiffusionPipeline.from_pretrained(out / "model")
    pipe.set_progress_bar_config(disable=True)
    spec, prompts = GenerationSpec(), ["a green tree", "a blue house"]
    again = generate(pipe, prompts, spec)
    assert torch.equal((again * 255).round(), (pictures * 255).round())
    other = DiffusionPipeline.from_pretrained(out / "model")
    other.set_progress_bar_config(disable=True)
    assert torch.equal(again, generate(other, prompts, spec))

    page = Sources()
    page.feed((out / "report.html").read_text(encoding="utf-8"))
    assert page.found
    assert all(source.startswith(("data:", "#")) for source in page.found)
    assert not re.search(r"@import|url\((?!['\"]?(data:|#))", (out / "report.html").read_text(encoding="utf-8"))


def test_same_command_again_does_nothing_again(run, models, mixdq, caplog) -> None:
    before = times(run)
    done = mixdq("quantize", models["sdxl"], "-o", run)
    assert done.exit_code == 0, done.stderr
    assert times(run) == before
    said = [record.args[0] for record in caplog.records if "is up to date" in record.msg and record.levelname == "INFO"]
    assert "evaluation.json" in said
    assert len(said) == len(set(said))


def test_another_budget_keeps_the_measurements_and_changes_the_plan(run, models, mixdq) -> None:
    before, plan = times(run), tomllib.loads((run / "plan.toml").read_text(encoding="utf-8"))
    done = mixdq("quantize", models["sdxl"], "-o", run, "--weight-bits", 7)
    assert done.exit_code == 0, done.stderr
    after = times(run)
    for kept in ("layers.json", "calibration.safetensors", "sensitivity.csv", "images/float/manifest.json"):
        assert after[kept] == before[kept], kept
    for made in ("plan.toml", "receipt.json", "evaluation.json", "model/model_index.json"):
        assert after[made] != before[made], made
    assert tomllib.loads((run / "plan.toml").read_text(encoding="utf-8"))["layers"] != plan["layers"]
    # The new budget holds from now on, for every verb.
    assert tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))["allocation"]["weight_bits"] == 7
    assert mixdq("evaluate", run).exit_code == 0
    assert times(run) == after
