"""One `.safetensors` file of the community's layout, quantized while diffusers reads it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from mixdq.errors import ArtifactFormatError, ConfigError
from mixdq.integrations.diffusers import MixDQConfig
from mixdq.testing import tiny_sd_pipeline, tiny_sdxl_pipeline

RECIPE: dict[str, Any] = {"weight_bits": 4, "backend": "reference"}
PREFIX = "model.diffusion_model."

# Places in the community's layout of a UNet whose blocks have one residual layer, by diffusers' names.
BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def community_name(name: str) -> str:
    block = max((block for block in BLOCKS if name.startswith(f"{block}.")), key=len)
    rest = name.removeprefix(f"{block}.")
    if ".resnets." in block:
        layer, kind = rest.split(".")
        rest = f"{RESIDUAL[layer]}.{kind}"
    return f"{PREFIX}{BLOCKS[block]}.{rest}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_both(tiny_sdxl_pipeline(), tmp_path_factory.mktemp("single"))


def save_both(pipe: Any, folder: Path) -> Path:
    """Return the folder with a pipeline, and its UNet in one file beside it."""
    pipe.save_pretrained(folder / "pipeline")
    content = {community_name(name): tensor for name, tensor in pipe.unet.state_dict().items()}
    save_file(content, folder / "model.safetensors")
    return folder


def from_file(path: Path, pipeline: Path, **options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_single_file(str(path), config=str(pipeline), subfolder="unet", **options)


@pytest.mark.parametrize("make", [tiny_sdxl_pipeline, tiny_sd_pipeline])
def test_it_gives_the_model_that_the_folder_gives(make: Callable[[], Any], tmp_path: Path) -> None:
    saved = save_both(make(), tmp_path)
    one = from_file(saved / "model.safetensors", saved / "pipeline", quantization_config=MixDQConfig(**RECIPE))
    other = UNet2DConditionModel.from_pretrained(saved / "pipeline" / "unet", quantization_config=MixDQConfig(**RECIPE))
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in one.state_dict().items())
    assert one.config["quantization_config"].saved == other.config["quantization_config"].saved


def test_a_pipeline_around_it_paints_and_is_saved(saved: Path, tmp_path: Path) -> None:
    file, folder = saved / "model.safetensors", saved / "pipeline"
    unet = from_file(file, folder, quantization_config=MixDQConfig(**RECIPE))
    parts = {name: part for name, part in tiny_sdxl_pipeline().components.items() if name != "unet"}
    pipe = StableDiffusionXLPipeline.from_single_file(str(file), config=str(folder), **{**parts, "unet": unet})
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    assert torch.equal(picture(again), picture(pipe))


def picture(pipe: Any) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    pipe.set_progress_bar_config(disable=True)
    images: Tensor = pipe("a cat", num_inference_steps=1, guidance_scale=0.0, generator=draw, output_type="pt").images
    return images


@pytest.mark.parametrize("missing", ["conv_in.weight", "conv_norm_out.bias"])
def test_a_file_that_lacks_a_tensor_is_refused(saved: Path, tmp_path: Path, missing: str) -> None:
    unet = tiny_sdxl_pipeline().unet.state_dict()
    content = {community_name(name): tensor for name, tensor in unet.items() if name != missing}
    save_file(content, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactFormatError, match=f"{re.escape(missing)} is missing"):
        from_file(tmp_path / "model.safetensors", saved / "pipeline", quantization_config=MixDQConfig(**RECIPE))


def test_a_file_of_8_bit_floats_is_refused(saved: Path, tmp_path: Path) -> None:
    unet = tiny_sdxl_pipeline().unet.state_dict()
    content = {community_name(name): tensor.to(torch.float8_e4m3fn) for name, tensor in unet.items()}
    save_file(content, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactFormatError, match="float8"):
        from_file(tmp_path / "model.safetensors", saved / "pipeline", quantization_config=MixDQConfig(**RECIPE))


def test_a_description_of_a_quantized_model_is_no_recipe_for_a_file(saved: Path) -> None:
    file, folder = saved / "model.safetensors", saved / "pipeline"
    done = from_file(file, folder, quantization_config=MixDQConfig(**RECIPE)).config["quantization_config"]
    with pytest.raises(ConfigError, match="weight_bits=8"):
        from_file(file, folder, quantization_config=done)
