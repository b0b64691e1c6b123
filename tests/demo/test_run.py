import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mixdq.config import RunConfig
from mixdq.demo import run as demo
from mixdq.runtime.kernels import native
from mixdq.store.plan_file import read_plan
from mixdq.store.table_file import read_layers
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.workflow import cost

KEYS = [
    "name",
    "method",
    "weight_bits",
    "activation_bits",
    "weight_bytes",
    "ssim",
    "psnr_db",
    "sqnr_db",
    "clip_score",
    "seconds",
]
PLAIN = ["floating point", "plain W8A8", "plain W4A8", "MixDQ W8A8", "MixDQ W5A8", "MixDQ W4A8"]
ABLATION = ["+ BOS W8A8", "+ BOS W4A8", "+ mixed on SQNR alone W8A8", "+ mixed on SQNR alone W4A8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_sdxl_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fewer prompts, fewer widths, and costs measured in this process."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text("a red dog\ntwo cats\na green tree\n", encoding="utf-8")
    full: Callable[[Path], RunConfig] = demo.demo_config

    def small(model: Path) -> RunConfig:
        config = full(model)
        changes = {
            "calibration": {"num_prompts": 2},
            "sensitivity": {"num_prompts": 1, "tolerance": 0.9},
            "allocation": {"activation_choices": {"content": (8,), "quality": (8,)}, "protect": 0.0, "max_plans": 2},
            "selection": {"num_prompts": 1},
            "evaluation": {"num_prompts": 2},
        }
        parts = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
        return config.model_copy(update=parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "CALIBRATION_PROMPTS", prompts)
        patch.setattr(demo, "EVALUATION_PROMPTS", prompts)
        patch.setattr(demo, "demo_config", small)
        patch.setattr(cost, "_in_own_process", cost._measure)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model) -> demo.DemoResult:
    return demo.run_demo(tmp_path_factory.mktemp("demo") / "out", model=model)


def times(folder: Path) -> dict[Path, int]:
    return {
        path.relative_to(folder): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name != "summary.json" and "report" not in path.name and "plots" not in path.parts
    }


def test_summary_has_the_promised_entries_and_keys(done) -> None:
    entries = json.loads(done.summary.read_text(encoding="utf-8"))
    assert [entry["name"] for entry in entries] == PLAIN
    assert all(list(entry) == KEYS for entry in entries)
    assert [entry["method"] for entry in entries] == ["float", "minmax", "minmax", "mixdq", "mixdq", "mixdq"]
    # Of identical pictures both ratios are infinite, which JSON cannot say.
    assert entries[0]["psnr_db"] is None
    assert entries[0]["sqnr_db"] is None
    assert all(isinstance(entry["sqnr_db"], float) for entry in entries[1:])


def test_numbers_keep_their_budgets_and_sizes_their_order(done) -> None:
    budgets = [16, 8, 4, 8, 5, 4]
    assert all(one.weight_bits <= budget for one, budget in zip(done.evaluations, budgets, strict=True))
    size = {one.name: one.weight_bytes for one in done.evaluations}
    assert size["floating point"] > size["MixDQ W8A8"] > size["MixDQ W5A8"] > size["MixDQ W4A8"]
    # The plain one does without the stored BOS rows.
    assert size["plain W8A8"] <= size["MixDQ W8A8"]


def test_mixdq_beats_plain_quantization_where_bos_is_an_outlier(done) -> None:
    sqnr = {one.name: one.sqnr_db for one in done.evaluations}
    assert sqnr["MixDQ W8A8"] > sqnr["plain W8A8"]
    assert sqnr["MixDQ W4A8"] > sqnr["plain W4A8"]


def test_every_variant_leaves_a_model_a_plan_and_pictures(done) -> None:
    folder = done.report.parent
    table = read_layers(folder / "layers.json")
    for recipe in demo.RECIPES:
        variant = folder / "variants" / recipe.slug
        assert (variant / "model" / "model_index.json").is_file()
        assert set(read_plan(variant / "plan.toml").layers) == {layer.name for layer in table}
        assert len(list((variant / "images" / "quantized").glob("*.png"))) == 2


def test_report_shows_every_variant(done) -> None:
    page = done.report.read_text(encoding="utf-8")
    assert all(name in page for name in PLAIN)


def test_second_run_does_nothing_again(done, model) -> None:
    folder = done.report.parent
    before, summary = times(folder), done.summary.read_bytes()
    again = demo.run_demo(folder, model=model)
    assert times(folder) == before
    assert again.summary.read_bytes() == summary


def test_ablation_adds_the_four_between(done, model, tmp_path) -> None:
    folder = Path(shutil.copytree(done.report.parent, tmp_path / "out"))
    before = times(folder)
    result = demo.run_demo(folder, ablation=True, model=model)
    assert [one.name for one in result.evaluations] == PLAIN + ABLATION
    entries = json.loads(result.summary.read_text(encoding="utf-8"))
    assert [entry["method"] for entry in entries[6:]] == ["bos", "bos", "mixdq-sqnr", "mixdq-sqnr"]
    # What was measured and drawn before is not done again.
    after = times(folder)
    kept = [path for path in before if path.name in ("layers.json", "calibration.safetensors", "outputs.safetensors")]
    assert [after[path] for path in kept] == [before[path] for path in kept]
    plain = Path("variants/plain-w4a8/receipt.json")
    assert after[plain] == before[plain]


def test_plain_quantization_knows_no_bos_and_no_joins(done) -> None:
    table = read_layers(done.report.parent / "layers.json")
    plain = demo.undivided(table)
    assert any(layer.bos for layer in table)
    assert any(layer.input_splits for layer in table)
    assert not any(layer.bos or layer.input_splits for layer in plain)
    assert [layer.name for layer in plain] == [layer.name for layer in table]


def test_slugs_are_folder_names_of_their_own() -> None:
    slugs = [recipe.slug for recipe in demo.RECIPES + demo.ABLATION]
    assert len(set(slugs)) == len(slugs)
    assert all(set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for slug in slugs)


def test_where_no_fast_backend_works_the_demo_says_so_and_goes_on_with_the_slow_one(caplog) -> None:
    # None of them runs on such a device yet.
    assert demo._backend("xpu", torch.float32) == "reference"
    assert "The demo goes on with the slow one" in caplog.text
    assert "not on xpu" in caplog.text


@pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))
def test_where_one_works_the_demo_leaves_the_choice_to_auto(caplog) -> None:
    assert demo._backend("cpu", torch.float32) == "auto"
    assert not caplog.text
