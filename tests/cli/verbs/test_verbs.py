"""What each verb says when it is done; that the work is right is shown in tests/end_to_end."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from mixdq.cli.main import VERBS, app
from mixdq.config import build_config
from mixdq.demo import run as demo
from mixdq.evaluation import pace, timing
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.evaluation import Evaluation
from mixdq.workflow import cost, steps
from mixdq.workflow.session import Session


@pytest.fixture(scope="module", autouse=True)
def _measured_here():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_in_own_process", cost._measure)
        # How long a call takes is not the point here.
        patch.setattr(pace, "LEAST_SECONDS", 0.001)
        patch.setattr(timing, "LEAST_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_sdxl_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def _finished(tmp_path_factory: pytest.TempPathFactory, model) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    eight = {"content": (8,), "quality": (8,)}
    config = build_config(
        {
            "model": {"path": str(model)},
            "calibration": {"num_prompts": 2},
            "sensitivity": {"num_prompts": 1, "tolerance": 0.9},
            "allocation": {
                "weight_bits": 8.0,
                "weight_choices": {"content": (4, 8), "quality": (8,)},
                "activation_choices": eight,
                "protect": 0.0,
                "max_plans": 1,
            },
            "selection": {"num_prompts": 1},
            "evaluation": {"num_prompts": 2},
        }
    )
    steps.run(Session.start(folder, config))
    return folder


@pytest.fixture
def run(_finished, tmp_path) -> Path:
    return Path(shutil.copytree(_finished, tmp_path / "run"))


def call(*words: object) -> str:
    """What a verb that is well says on a wide screen."""
    done = CliRunner(env={"COLUMNS": "140"}).invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_every_verb_has_its_file_and_every_file_its_verb() -> None:
    import mixdq.cli.verbs

    files = {path.stem for path in Path(mixdq.cli.verbs.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(VERBS)


SAYS = {
    "calibrate": (r"\d+ layers calibrated, \d+ BOS rows: .*calibration\.safetensors"),
    "sensitivity": (r"\d+ scores: .*sensitivity\.csv"),
    "allocate": (r"plan-01 +│ +8\.000 +│ +8\.000"),
    "fit": (r"quality activation: weight \d\.\d+\nSpearman on plans left out: "),
    "choose": (r"plan-01: .*plan\.toml"),
    "apply": (r"MiB in 16 bits, .* MiB now: .*model"),
    "evaluate": (r"MixDQ W8A8 "),
    "report": (r"report: .*report\.html"),
    "benchmark": (r"numbers: .*benchmark\.json"),
}


@pytest.mark.parametrize("verb", SAYS)
def test_verb_of_a_step_says_its_result_and_its_file(run, verb) -> None:
    assert re.search(SAYS[verb], call(verb, run))


def test_allocate_finds_a_frontier_and_a_budget_of_time(run) -> None:
    said = call("allocate", run, "--program", "joint", "--weight-bits", "7", "--frontier", "4")
    assert re.search(r"4 budgets: .*frontier\.csv", said)
    assert re.search(r"weight_bits below [\d.]+ is out of reach, above [\d.]+ nothing is gained", said)
    assert (run / "frontier.svg").exists()
    assert re.search(r"\d+ layers, [\d.]+ ms between them: .*latency\.json", call("benchmark", run, "--layers"))
    assert re.search(r"plan-01 .*│ +[\d.]+ +│", call("allocate", run, "--latency-ms", "1e6"))
    refused = CliRunner().invoke(app, ["allocate", str(run), "--latency-ms", "1e-6"])
    assert refused.exit_code == 1
    assert "latency_ms = 1e-06 is out of reach" in refused.stderr
    refused = CliRunner().invoke(
        app, ["allocate", str(run), "--program", "split", "--weight-bits", "8", "--frontier", "4"]
    )
    assert "say `--program joint`" in refused.stderr


def test_benchmark_of_layers_refuses_what_it_has_anyway(tmp_path) -> None:
    refused = CliRunner().invoke(app, ["benchmark", str(tmp_path), "--layers", "--cuda-graphs"])
    assert refused.exit_code == 2
    assert "leave out --cuda-graphs" in " ".join(refused.stderr.replace("│", "").split())


def test_export_lists_what_became_of_the_layers_and_says_what_it_cannot(run, model, tmp_path) -> None:
    file = tmp_path / "unet.safetensors"
    said = call("export", run / "model", "-o", file)
    assert file.stat().st_size > 0
    assert re.search(r"\d+ quantized layers as int8", said)
    refused = CliRunner().invoke(app, ["export", str(model), "-o", str(file)])
    assert refused.exit_code != 0
    assert "not quantized" in refused.stderr


def test_inspect_counts_layers_by_group(run, model) -> None:
    said = call("inspect", model, "-o", run)
    assert "content" in said
    assert "quality" in said
    assert re.search(r"\d+ layers of family sdxl: .*layers\.json", said)


def test_quantize_and_run_say_where_model_and_report_are(run, model) -> None:
    for words in (["quantize", model, "-o", run], ["run", run / "config.toml"]):
        said = call(*words)
        assert f"model:  {run / 'model'}" in said
        assert f"report: {run / 'report.html'}" in said


def test_quantize_passes_activations_on_and_names_a_wrong_one(run, model, monkeypatch) -> None:
    told = []
    monkeypatch.setattr(steps, "run", lambda session: told.append(session.config.conversion.activations) or ([], run))
    call("quantize", model, "-o", run, "--activations", "dynamic")
    assert told == ["dynamic"]
    done = CliRunner().invoke(app, ["quantize", str(model), "-o", str(run), "--activations", "dynamc"])
    assert done.exit_code == 1
    assert "conversion.activations: expected 'static' or 'dynamic', got 'dynamc'" in done.stderr


def test_apply_carries_a_plan_to_another_model_and_says_whether_it_holds(run, model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = call("apply", "--plan", run / "plan.toml", model)
    out = Path(f"{model.name}-MixDQ")
    assert re.search(rf"plan plan-01 holds on {model}: SQNR .* on its own model: SQNR", said)
    assert re.search(rf"MiB in 16 bits, .* MiB now: {out / 'model'}", said)
    assert call("apply", "--plan", run / "plan.toml", model, "-o", out) == said
    assert re.search(SAYS["apply"], call("apply", out))


def test_apply_takes_the_name_of_bits_for_a_plan(model, tmp_path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red dog\ntwo cats\n")
    out = tmp_path / "out"
    words = ["--prompts", prompts, "--backend", "reference", "--activations", "dynamic", "-o", out]
    said = call("apply", "--plan", "W8A8 float", model, *words)
    assert re.search(rf"plan W8A8 float-uniform \w+.* on {model}: SQNR .* \(uniform W8, A8\): SQNR", said)
    plan = (out / "plan.toml").read_text()
    assert 'conv_in = "W8A8"' in plan
    assert '"time_embedding.linear_1" = "W8A8 float"' in plan


def test_apply_refuses_a_plan_that_is_not_there_before_it_begins_a_folder(model, tmp_path) -> None:
    done = CliRunner().invoke(
        app, ["apply", "--plan", str(tmp_path / "no.toml"), str(model), "-o", str(tmp_path / "o")]
    )
    assert done.exit_code == 1
    assert "no.toml: there is no such file" in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("option", [["--force"], ["--steps", "2"], ["-o", "out"]], ids=" ".join)
def test_apply_takes_options_with_a_plan_only(run, option) -> None:
    done = CliRunner().invoke(app, ["apply", str(run), *option])
    assert done.exit_code == 2
    assert "options go with --plan only" in done.stderr


def test_model_that_cannot_be_had_is_one_line_and_its_folder_takes_the_right_one(run, model, tmp_path) -> None:
    words = [sys.executable, "-c", "from mixdq.cli.main import app; app()", "quantize", "owner/model", "-o", tmp_path]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(words, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: owner/model: not whole on this machine, and HF_HUB_OFFLINE forbids")
    assert done.stderr.count("\n") == 1
    call("inspect", model, "-o", tmp_path)


def test_run_takes_another_folder(run, tmp_path) -> None:
    shutil.move(run / "config.toml", tmp_path / "mine.toml")
    assert f"report: {run / 'report.html'}" in call("run", tmp_path / "mine.toml", "-o", run)
    assert (run / "config.toml").read_bytes() == (tmp_path / "mine.toml").read_bytes()


def test_allocate_keeps_a_new_budget(run) -> None:
    call("allocate", run, "--weight-bits", 7)
    assert "weight_bits = 7" in (run / "config.toml").read_text(encoding="utf-8")


def test_generate_writes_one_picture_a_prompt(model, tmp_path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n", encoding="utf-8")
    said = call("generate", model, "-o", tmp_path / "out", "a dog", "--prompts", prompts, "--size", 32, "--seed", 1)
    assert [line.split("  ")[1] for line in said.splitlines()] == ["a dog", "a cat"]
    for name in ("000.png", "001.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == (32, 32)


def test_doctor_names_every_backend() -> None:
    said = call("doctor")
    assert "reference" in said
    assert "works" in said
    assert "torch" in said


@pytest.mark.parametrize("ablation", [False, True])
def test_demo_says_where_summary_and_report_are(tmp_path, monkeypatch, ablation) -> None:
    asked = []

    def run_demo(folder: Path, **options: object) -> demo.DemoResult:
        asked.append((folder, options["ablation"]))
        one = Evaluation(
            name="floating point",
            method="float",
            weight_bits=16,
            activation_bits=16,
            weight_bytes=1,
            ssim=1,
            psnr_db=1,
            sqnr_db=1,
            clip_score=None,
            seconds=1,
        )
        return demo.DemoResult(evaluations=[one], summary=folder / "summary.json", report=folder / "report.html")

    monkeypatch.setattr(demo, "run_demo", run_demo)
    said = call("demo", "-o", tmp_path, *(["--ablation"] if ablation else []))
    assert asked == [(tmp_path, ablation)]
    assert f"numbers: {tmp_path / 'summary.json'}" in said
    assert said.rstrip().endswith(f"report:  {tmp_path / 'report.html'}")
