"""Saved tiny denoisers of every family and backend, calibrated or quantized while they load, to be opened by tests."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from mixdq.calibration.collect import calibrate
from mixdq.conversion.convert import convert
from mixdq.integrations.diffusers import MixDQConfig, attach_config
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.runtime.kernels import native
from mixdq.testing import tiny_sd_pipeline, tiny_sdxl_pipeline
from mixdq.types.plan import BitPlan, LayerBits

MAKERS = {"sd": tiny_sd_pipeline, "sdxl": tiny_sdxl_pipeline}
WIDTHS = ("W8A8", "W4A8", "W16A16", "W4A16")


@dataclass(frozen=True)
class Subject:
    """One denoiser: as float and as quantized folder, and inputs that begin with its own BOS state."""

    family: str
    backend: str
    kind: str
    floating: Path
    quantized: Path
    bos: Tensor

    @property
    def weight_only(self) -> bool:
        return self.kind == "W8A16 while loading"

    def open(self, folder: Path | None = None, **options: Any) -> UNet2DConditionModel:
        if self.weight_only and folder is None:
            recipe = MixDQConfig(weight_bits=8, backend=self.backend)
            return UNet2DConditionModel.from_pretrained(self.floating, quantization_config=recipe, **options)
        return UNet2DConditionModel.from_pretrained(folder or self.quantized, **options)

    def open_float(self) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_pretrained(self.floating)

    def shared(self) -> UNet2DConditionModel:
        """Open it once for all tests that leave it as it is."""
        return _shared(self)

    def expected(self) -> Tensor:
        """Return the output of `shared`."""
        return _expected(self)

    def inputs(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(0)
        text = torch.randn(2, 5, self.bos.numel(), generator=draw)
        text[:, 0] = self.bos
        extra = {"text_embeds": torch.randn(2, 32, generator=draw), "time_ids": torch.ones(2, 6)}
        return {
            "sample": torch.randn(2, 4, 8, 8, generator=draw).to(device, dtype),
            "timestep": torch.tensor(999, device=device),
            "encoder_hidden_states": text.to(device, dtype),
            "added_cond_kwargs": {name: tensor.to(device, dtype) for name, tensor in extra.items()},
        }

    def run(self, model: Any, device: str = "cpu") -> Tensor:
        with torch.no_grad():
            output: Tensor = model(**self.inputs(device)).sample
        return output.cpu()


@functools.cache
def _shared(subject: Subject) -> UNet2DConditionModel:
    return subject.open()


@functools.cache
def _expected(subject: Subject) -> Tensor:
    return subject.run(_shared(subject))


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, Path, Tensor]]:
    """(family, backend) -> the float folder, the quantized folder and the BOS state."""
    made = {}
    for name, maker in MAKERS.items():
        pipe, spec, prompts = maker(), GenerationSpec(steps=1), ("a red dog", "two cats")
        floating = tmp_path_factory.mktemp(f"{name}-float")
        pipe.unet.save_pretrained(floating)
        family = find_family(pipe)
        table = list_layers(pipe, family, spec, model="tiny")
        record = calibrate(pipe, family, table, prompts, spec)
        layers = {layer.name: LayerBits.parse(WIDTHS[i % len(WIDTHS)]) for i, layer in enumerate(table)}
        plan = BitPlan(name="mixed", layers=layers)
        convert(pipe.unet, plan, table, record, backend="reference")
        for backend in ("reference", "cpu"):
            folder = tmp_path_factory.mktemp(f"{name}-{backend}")
            attach_config(pipe.unet, plan, table, record, backend=backend)
            pipe.unet.save_pretrained(folder)
            assert record.bos_input is not None
            made[name, backend] = floating, folder, record.bos_input
    return made


def subject_of(subjects: Any, family: str, backend: str, kind: str) -> Subject:
    if backend == "cpu" and native.trouble():
        pytest.skip(str(native.trouble()))
    return Subject(family, backend, kind, *subjects[family, backend])


@pytest.fixture(
    params=[
        ("sd", "reference", "calibrated"),
        ("sd", "cpu", "W8A16 while loading"),
        ("sdxl", "cpu", "calibrated"),
        ("sdxl", "reference", "W8A16 while loading"),
    ],
    ids=" ".join,
)
def subject(request: pytest.FixtureRequest, subjects: Any) -> Subject:
    """Each family on each backend, each kind of quantization."""
    return subject_of(subjects, *request.param)


@pytest.fixture(params=[("sd", "cpu"), ("sdxl", "reference")], ids=" ".join)
def weight_only(request: pytest.FixtureRequest, subjects: Any) -> Subject:
    """Denoisers whose inputs stay in floating point, so that the dequantized model is their oracle."""
    return subject_of(subjects, *request.param, "W8A16 while loading")
