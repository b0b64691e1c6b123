"""The oracle is diffusers' own reader of community checkpoints."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from mixdq.errors import UnsupportedModelError
from mixdq.integrations.unet_names import community_names
from mixdq.testing import tiny_sd_pipeline, tiny_sdxl_pipeline

# As in SDXL and its refiner: blocks of unequal kinds, several transformer layers, an attention-free first block.
DEEP: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
}


def deep_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(**DEEP)


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny_sd_pipeline(layers_per_block=2).unet,
        lambda: tiny_sdxl_pipeline().unet,
        lambda: tiny_sdxl_pipeline(layers_per_block=2).unet,
        deep_unet,
    ],
    ids=["sd", "sdxl", "sdxl, 2 layers", "3 blocks"],
)
def test_diffusers_finds_every_tensor_back_under_its_own_name(make: Callable[[], Any]) -> None:
    unet = make()
    renamed, state = community_names(unet), unet.state_dict()
    shared = {f"model.diffusion_model.{renamed(name)}": tensor for name, tensor in state.items()}
    assert len(shared) == len(state)
    back = convert_ldm_unet_checkpoint(shared, dict(unet.config))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_modules_are_renamed_as_their_tensors_are() -> None:
    renamed = community_names(tiny_sdxl_pipeline().unet)
    assert renamed("down_blocks.0.resnets.0.conv1") == "input_blocks.1.0.in_layers.2"
    assert renamed("down_blocks.0.resnets.0.conv1.weight") == "input_blocks.1.0.in_layers.2.weight"


def test_blocks_without_a_name_are_refused() -> None:
    kinds = ("DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D")
    with pytest.raises(UnsupportedModelError, match="AttnDownBlock2D"):
        community_names(UNet2DConditionModel(**{**DEEP, "down_block_types": kinds}))


def test_tensors_without_a_name_are_refused_and_named() -> None:
    guided = UNet2DConditionModel(**DEEP, time_cond_proj_dim=4)
    with pytest.raises(UnsupportedModelError, match=r"time_embedding\.cond_proj\.weight"):
        community_names(guided)
