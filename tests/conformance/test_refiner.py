"""SDXL's refiner as it is published: a pipeline from pictures to pictures, one text encoder, an aesthetic score.

The method begins from prompts alone, so it refuses the refiner; without calibration it is quantized while it loads.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig, StableDiffusionXLImg2ImgPipeline
from torch import Tensor
from typer.testing import CliRunner

import mixdq
from mixdq.cli.main import app
from mixdq.metrics.psnr import psnr
from mixdq.runtime.layer import QuantizedLayer
from mixdq.testing import TEXT_WIDTH, tiny_sdxl_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny refiner; its UNet is told five numbers: size and place, two each, and the score."""
    base = tiny_sdxl_pipeline(text_encoders=1)
    config = {**base.unet.config, "projection_class_embeddings_input_dim": 5 * 8 + TEXT_WIDTH}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        unet = type(base.unet).from_config(config).eval()
    parts = {**base.components, "unet": unet}
    refiner = StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True, add_watermarker=False)
    path = tmp_path_factory.mktemp("refiner") / "model"
    refiner.save_pretrained(path)
    return path


def refined(pipe: Any, score: float = 6.0) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    picture = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    images: Tensor = pipe(
        "a red dog",
        image=picture,
        strength=0.5,
        num_inference_steps=4,
        aesthetic_score=score,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    return images


def test_quantized_while_it_loads_it_refines_as_in_floating_point(folder: Path, tmp_path: Path) -> None:
    recipe = mixdq.MixDQConfig(weight_bits=8, activation_bits=8, activations="dynamic", backend="reference")
    options = {"quantization_config": PipelineQuantizationConfig(quant_mapping={"unet": recipe})}
    plain = DiffusionPipeline.from_pretrained(folder)
    pipe = DiffusionPipeline.from_pretrained(folder, **options)
    assert any(isinstance(module, QuantizedLayer) for module in pipe.unet.modules())
    wanted, found = refined(plain), refined(pipe)
    assert psnr(wanted, found) > 20
    assert not torch.equal(wanted, refined(plain, score=1.0))
    pipe.save_pretrained(tmp_path)
    assert torch.equal(refined(DiffusionPipeline.from_pretrained(tmp_path)), found)


def test_the_method_refuses_it_and_says_what_works(folder: Path, tmp_path: Path) -> None:
    done = CliRunner(env={"COLUMNS": "1000"}).invoke(app, ["quantize", str(folder), "-o", str(tmp_path / "out")])
    assert done.exit_code == 1
    said = done.stderr
    for word in ("StableDiffusionXLImg2ImgPipeline", "UNet2DConditionModel.from_pretrained", 'activations="dynamic"'):
        assert word in said
