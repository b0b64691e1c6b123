"""A tiny SDXL pipeline quantized to mixed widths, and its pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from mixdq.calibration.collect import calibrate
from mixdq.conversion.convert import convert
from mixdq.integrations.diffusers import attach_config, register
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec, generate
from mixdq.pipeline.layers import list_layers
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.plan import Activations, BitPlan, Budget, LayerBits, SolverFacts

PROMPTS = ("a red dog", "two cats")
SPEC = GenerationSpec(steps=1)
WIDTHS = ("W8A8", "W4A8", "W2A16", "W16A16", "W5A6", "W3A8")


@dataclass
class Quantized:
    pipe: DiffusionPipeline
    plan: BitPlan
    pictures: torch.Tensor
    folder: Path


def make(
    dtype: torch.dtype = torch.float32,
    *,
    symmetric: bool = True,
    activations: Activations = "static",
    backend: str = "reference",
    floats: bool = False,
) -> tuple[DiffusionPipeline, BitPlan]:
    register()
    pipe = tiny_sdxl_pipeline().to(dtype)
    family = find_family(pipe)
    table = list_layers(pipe, family, SPEC, model="tiny")
    record = calibrate(pipe, family, table, PROMPTS, SPEC)
    plan = BitPlan(
        name="mixed",
        layers={
            layer.name: LayerBits.parse("W8A8 float" if floats and layer.op == "linear" else WIDTHS[i % len(WIDTHS)])
            for i, layer in enumerate(table)
        },
        budget=Budget(weight_bits=5.0, keep=("conv_in",)),
        solver=SolverFacts(solver="highs", objective="raw", values={"weight.content": 1.5}, content_quality_ratio=0.9),
        origin={"model": "abc"},
    )
    facts = {"backend": backend, "symmetric": symmetric, "activations": activations}
    convert(pipe.unet, plan, table, record, **facts)
    attach_config(pipe.unet, plan, table, record, **facts)
    return pipe, plan


def paint(pipe: DiffusionPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return generate(pipe, PROMPTS, SPEC)


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    pipe, plan = make()
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder)
    return Quantized(pipe, plan, paint(pipe), folder)


@pytest.fixture
def painted() -> Callable[[DiffusionPipeline], torch.Tensor]:
    """Return the function that paints the test's two pictures."""
    return paint


@pytest.fixture
def made() -> Callable[..., tuple[DiffusionPipeline, BitPlan]]:
    """Return the function that quantizes a fresh tiny pipeline."""
    return make
