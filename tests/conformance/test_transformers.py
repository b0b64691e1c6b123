"""Transformer denoisers from end to end: every step of the method, a saved folder, and the same picture from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import mixdq
from mixdq.config import RunConfig, build_config
from mixdq.metrics.psnr import psnr
from mixdq.pipeline.generate import GenerationSpec
from mixdq.runtime.layer import QuantizedLayer
from mixdq.testing import tiny_flux_pipeline, tiny_sd3_pipeline
from mixdq.types.plan import Activations, BitPlan, LayerBits
from mixdq.workflow import api, cost, steps

PROMPTS = ("a red dog", "two cats")
TRANSFORMERS = {"flux": tiny_flux_pipeline, "sd3": tiny_sd3_pipeline}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_transformer_is_quantized_saved_and_opened_to_the_same_picture(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    pipe = TRANSFORMERS[family]()
    before = mixdq.generate(pipe, PROMPTS, size=16)
    out = tmp_path / "out"
    assert mixdq.quantize(pipe, weight_bits=6, prompts=prompts, size=16, output=out) is pipe
    layers = [module for module in pipe.transformer.modules() if isinstance(module, QuantizedLayer)]
    assert {layer.layout.bits.activation for layer in layers} == {8}
    assert {4, 8} == {layer.layout.bits.weight for layer in layers}
    pictures = mixdq.generate(pipe, PROMPTS, size=16)
    assert psnr(before, pictures) > psnr(before, before.flip(0))
    opened = DiffusionPipeline.from_pretrained(out / "model")
    assert torch.equal(pictures, mixdq.generate(opened, PROMPTS, size=16))


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `quantize` measure few widths, time itself in this process, and draw no report."""
    small = {
        "weight_choices": {"content": (4, 8), "quality": (4, 8)},
        "activation_choices": {"content": (8,), "quality": (8,)},
        "protect": 0.0,
        "max_plans": 2,
    }

    def build(data: Mapping[str, Any], where: str = "config") -> RunConfig:
        return build_config({**data, "allocation": {**data.get("allocation", {}), **small}}, where)

    monkeypatch.setattr(api, "build_config", build)
    monkeypatch.setattr(cost, "_in_own_process", cost._measure)
    monkeypatch.setattr(steps, "report", lambda session: session.paths.root / "report.html")


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_eight_bits_hardly_change_a_transformers_picture(family: str, activations: Activations) -> None:
    pipe, spec = TRANSFORMERS[family](), GenerationSpec(height=16, width=16)
    before = mixdq.generate(pipe, PROMPTS, size=16, steps=2)
    table = mixdq.inspect(pipe, spec=spec)
    record = mixdq.calibrate(pipe, PROMPTS, table=table, spec=spec)
    plan = BitPlan(name="8", layers={layer.name: LayerBits(weight=8, activation=8) for layer in table})
    mixdq.apply(pipe, plan, record, table, activations=activations)
    assert psnr(before, mixdq.generate(pipe, PROMPTS, size=16, steps=2)) > 25
