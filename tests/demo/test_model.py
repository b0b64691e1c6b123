"""The model that ships: complete, small, openable by plain diffusers, and with the outlier that the method is about."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from mixdq import demo
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec, generate
from mixdq.pipeline.layers import list_layers
from mixdq.pipeline.prompts import read_prompts


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(demo.MODEL, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def prompts() -> tuple[str, ...]:
    return read_prompts(demo.EVALUATION_PROMPTS)


def test_folder_is_small_enough_to_ship_and_holds_no_pickle() -> None:
    files = [path for path in demo.MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 64 * 2**20
    assert (demo.MODEL / "README.md").is_file()
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".md", ".png", ".webp", ".jpg"}


def test_denoiser_has_the_parts_of_sdxl(pipe) -> None:
    unet = pipe.unet
    assert 10e6 <= sum(weight.numel() for weight in unet.parameters()) <= 25e6
    assert unet.config.addition_embed_type == "text_time"
    assert unet.config.use_linear_projection
    table = list_layers(pipe, find_family(pipe), GenerationSpec(), model="emoji-turbo")
    assert table.family == "sdxl"
    assert any(layer.bos for layer in table)
    assert any(layer.input_splits for layer in table)


def test_first_token_is_an_outlier_and_the_same_for_every_prompt(pipe, prompts) -> None:
    with torch.no_grad():
        states = pipe.encode_prompt(list(prompts[:8]), device="cpu", do_classifier_free_guidance=False)[0]
    first, rest = states[:, 0], states[:, 1:]
    # SDXL's own is 823 against 10 to 15; a shared scale of 8 bits costs log2 of this ratio in bits.
    assert float(first.abs().amax() / rest.abs().amax()) >= 10
    assert torch.allclose(first, first[:1].expand_as(first), rtol=1e-4, atol=1e-4 * float(first.abs().amax()))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_give_pictures_that_differ_with_the_prompt(pipe, prompts, steps) -> None:
    pictures = generate(pipe, prompts[:2], GenerationSpec(steps=steps))
    assert pictures.shape[-1] >= 64
    assert torch.isfinite(pictures).all()
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    # Neither blank nor alike.
    assert pictures.std(dim=(1, 2, 3)).min() > 0.05
    assert (pictures[0] - pictures[1]).abs().mean() > 0.02


def test_prompts_for_calibration_are_not_those_for_judgement(prompts) -> None:
    calibration = read_prompts(demo.CALIBRATION_PROMPTS)
    assert len(calibration) >= 32
    assert len(prompts) >= 32
    assert not set(calibration) & set(prompts)
