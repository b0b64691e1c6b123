from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import mixdq
from mixdq.config import RunConfig, build_config, load_config
from mixdq.errors import ConfigError, InfeasibleBudgetError
from mixdq.runtime.layer import QuantizedLayer
from mixdq.testing import fingerprint, tiny_sdxl_pipeline
from mixdq.types.plan import Budget
from mixdq.workflow import api, steps

PROMPTS = ("a dog", "a cat")
SMALL = Budget(
    weight_bits=6.0,
    activation_bits=8.0,
    weight_choices={"content": (4, 8), "quality": (4, 8)},
    activation_choices={"content": (8,), "quality": (8,)},
    protect=0.0,
)


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS), encoding="utf-8")
    return path


def test_steps_by_themselves_quantize_a_loaded_pipeline() -> None:
    pipe = tiny_sdxl_pipeline()
    before = fingerprint(pipe.unet)
    table = mixdq.inspect(pipe)
    record = mixdq.calibrate(pipe, PROMPTS, table=table)
    scores = mixdq.measure(pipe, record, PROMPTS[:1], table=table)
    plans = mixdq.allocate(table, scores, budget=SMALL)
    plan = mixdq.choose(pipe, record, plans[:2], PROMPTS[:1], table=table)
    assert plan in plans
    reference = mixdq.generate(pipe, PROMPTS)
    assert reference.shape == (2, 3, 16, 16)
    # Nothing so far has changed the model.
    assert fingerprint(pipe.unet) == before
    assert mixdq.apply(pipe, plan, record, table) is pipe
    assert fingerprint(pipe.unet) != before
    found = mixdq.evaluate(reference, mixdq.generate(pipe, PROMPTS), PROMPTS)
    assert 0.5 < found["ssim"] < 1
    assert set(found.means) == {"ssim", "psnr"}


@pytest.fixture
def few_widths(monkeypatch) -> None:
    """Let `quantize` measure a third of the widths, which it has no argument for."""
    small = {
        "weight_choices": {"content": (4, 8), "quality": (4, 8)},
        "activation_choices": {"content": (8,), "quality": (8,)},
        "protect": 0.0,
        "max_plans": 2,
    }

    def build(data: Mapping[str, Any], where: str = "config") -> RunConfig:
        return build_config({**data, "allocation": {**data.get("allocation", {}), **small}}, where)

    monkeypatch.setattr(api, "build_config", build)


@pytest.mark.usefixtures("few_widths")
def test_loaded_pipeline_is_quantized_in_place(prompts_file) -> None:
    pipe = tiny_sdxl_pipeline()
    before = mixdq.generate(pipe, PROMPTS)
    assert mixdq.quantize(pipe, weight_bits=6, prompts=prompts_file) is pipe
    after = mixdq.generate(pipe, PROMPTS)
    assert not torch.equal(before, after)
    assert mixdq.evaluate(before, after, PROMPTS)["ssim"] > 0.5


@pytest.mark.usefixtures("few_widths")
def test_activations_may_be_dynamic(prompts_file) -> None:
    pipe = tiny_sdxl_pipeline()
    before = mixdq.generate(pipe, PROMPTS)
    mixdq.quantize(pipe, weight_bits=6, prompts=prompts_file, activations="dynamic")
    layers = [module for module in pipe.unet.modules() if isinstance(module, QuantizedLayer)]
    assert layers
    assert all(layer.layout.dynamic and layer.activation() is None for layer in layers)
    assert pipe.unet.config.quantization_config.saved.activations == "dynamic"
    assert mixdq.evaluate(before, mixdq.generate(pipe, PROMPTS), PROMPTS)["ssim"] > 0.5


@pytest.mark.usefixtures("measured_here", "few_widths")
def test_folder_is_quantized_into_a_folder_that_says_everything(model, tmp_path, prompts_file) -> None:
    out = tmp_path / "out"
    pipe = mixdq.quantize(model, weight_bits=6, prompts=prompts_file, output=out)
    assert (out / "report.html").is_file()
    pictures = mixdq.generate(pipe, PROMPTS)
    assert torch.equal(pictures, mixdq.generate(out / "model", PROMPTS))
    before = {path: path.stat().st_mtime_ns for path in (out / "model").rglob("*")}
    again = mixdq.quantize(model, weight_bits=6, prompts=prompts_file, output=out)
    assert torch.equal(pictures, mixdq.generate(again, PROMPTS))
    assert {path: path.stat().st_mtime_ns for path in (out / "model").rglob("*")} == before


@pytest.mark.usefixtures("measured_here", "few_widths", "unreported")
def test_loaded_pipeline_with_a_folder_is_changed_in_place_and_saved(model, tmp_path, prompts_file) -> None:
    out = tmp_path / "out"
    pipe = DiffusionPipeline.from_pretrained(model)
    assert mixdq.quantize(pipe, weight_bits=6, prompts=prompts_file, output=out) is pipe
    pictures = mixdq.generate(pipe, PROMPTS)
    assert torch.equal(pictures, mixdq.generate(out / "model", PROMPTS))
    # A second, fresh one finds everything done, and is quantized all the same.
    other = DiffusionPipeline.from_pretrained(model)
    assert mixdq.quantize(other, weight_bits=6, prompts=prompts_file, output=out) is other
    assert torch.equal(pictures, mixdq.generate(other, PROMPTS))


def test_sensitivities_are_found_as_asked_for(tmp_path, prompts_file, monkeypatch) -> None:
    asked = []

    def stop(session) -> None:
        asked.append(session.config.sensitivity)
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        mixdq.quantize("nowhere", output=tmp_path, prompts=prompts_file, method="exact", checkpointing=True)
    assert (asked[0].method, asked[0].checkpointing) == ("exact", True)
    assert load_config(tmp_path / "config.toml").sensitivity == asked[0]


def test_pictures_depend_on_seed_and_place_alone(model) -> None:
    pictures = mixdq.generate(model, PROMPTS, seed=3)
    # Batches of two and of one differ by float rounding alone; another seed gives another picture.
    alone = mixdq.generate(model, PROMPTS[:1], seed=3)
    assert torch.allclose(pictures[:1], alone, rtol=0, atol=1e-4)
    assert (pictures - mixdq.generate(model, PROMPTS, seed=4)).abs().max() > 0.1


def test_wrong_settings_are_refused_before_the_model_is_touched(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"allocation\.weight_bits"):
        mixdq.quantize(tmp_path / "nowhere", weight_bits=1)
    with pytest.raises(ConfigError, match=r"conversion\.activations"):
        mixdq.quantize(tmp_path / "nowhere", activations="dynamc")
    with pytest.raises(ConfigError, match=r"sensitivity\.method"):
        mixdq.quantize(tmp_path / "nowhere", method="exakt")
    with pytest.raises(ConfigError, match="steps = 0"):
        mixdq.generate(tmp_path / "nowhere", PROMPTS, steps=0)


@pytest.mark.usefixtures("few_widths")
def test_budget_out_of_reach_leaves_a_loaded_pipeline_as_it_was(prompts_file) -> None:
    pipe = tiny_sdxl_pipeline()
    before = fingerprint(pipe.unet)
    with pytest.raises(InfeasibleBudgetError):
        mixdq.quantize(pipe, weight_bits=2, prompts=prompts_file)
    assert fingerprint(pipe.unet) == before
