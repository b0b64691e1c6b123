"""Denoisers of published models at full size, by their published configurations, on the meta device: no storage.

What is expected is counted by hand from the architectures, as the comments say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from mixdq.pipeline.families.flux import FluxFamily
from mixdq.pipeline.families.sd import SDFamily
from mixdq.pipeline.families.sd3 import SD3Family
from mixdq.pipeline.families.sdxl import SDXLFamily
from mixdq.pipeline.family import ModelFamily
from mixdq.pipeline.layers import layer_specs
from mixdq.types.layers import GROUPS

CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
PLAIN = ("DownBlock2D", "UpBlock2D")


@dataclass(frozen=True)
class Architecture:
    """A denoiser, the arguments of a call on one picture, and what its layer table must say."""

    family: ModelFamily
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    parameters: int
    linear: int
    conv2d: int
    content: int
    bos: int
    splits: list[tuple[int, ...]]


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def unet(blocks: list[tuple[int, tuple[str, str]]], **architecture: Any) -> Callable[[], nn.Module]:
    """Return the maker of a UNet of blocks (channels, (down, up)), the others as all of these models have them."""
    return lambda: UNet2DConditionModel(
        block_out_channels=[channels for channels, _ in blocks],
        down_block_types=[kinds[0] for _, kinds in blocks],
        up_block_types=[kinds[1] for _, kinds in reversed(blocks)],
        **architecture,
    )


def unet_inputs(latents: int, text: int, pooled: int = 0, time_ids: int = 0) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "sample": empty(1, 4, latents, latents),
        "timestep": empty(1),
        "encoder_hidden_states": empty(1, 77, text),
        "added_cond_kwargs": {"text_embeds": empty(1, pooled), "time_ids": empty(1, time_ids)},
    }


def joint_inputs(text: int, pooled: int, **picture: tuple[int, ...]) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "encoder_hidden_states": empty(1, text, 4096),
        "pooled_projections": empty(1, pooled),
        "timestep": empty(1),
        **{name: empty(*shape) for name, shape in picture.items()},
    }


# Stable Diffusion 1 and 2: 6 + 1 + 9 transformer blocks, each of 4 + 4 projections and 2 feed-forward layers;
# 8 + 2 + 12 residual layers with a projection of the time; 2 layers of the time embedding.
SD_LINEAR = 16 * 10 + 22 + 2
# 2 convolutions a residual layer, 2 + 12 shortcuts, 3 + 3 that resize, the first and the last.
SD_CONV2D = 22 * 2 + 14 + 6 + 2
FOUR_LEVELS = [(320, CROSS), (640, CROSS), (1280, CROSS), (1280, PLAIN)]


def four_levels(a: int, b: int, c: int) -> list[tuple[int, ...]]:
    """Joins of blocks of a, b, c and c channels. Each up block ends at the skip that entered the level."""
    up = [(c, c), (c, c), (c, c), (c, c), (c, c), (c, b), (c, b), (b, b), (b, a), (b, a), (a, a), (a, a)]
    assert len(up) == 4 * 3
    return up


ARCHITECTURES = {
    # stable-diffusion-v1-5/stable-diffusion-v1-5; transformers project with convolutions.
    "sd-1.5": Architecture(
        SDFamily(),
        unet(FOUR_LEVELS, cross_attention_dim=768, attention_head_dim=8),
        unet_inputs(64, 768),
        parameters=859_520_964,
        linear=SD_LINEAR,
        conv2d=SD_CONV2D + 2 * 16,
        content=16 * 6,
        bos=16 * 2,
        splits=four_levels(320, 640, 1280),
    ),
    # stabilityai/stable-diffusion-2-1, and SD-Turbo.
    "sd-2.1": Architecture(
        SDFamily(),
        unet(FOUR_LEVELS, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True),
        unet_inputs(64, 1024),
        parameters=865_910_724,
        linear=SD_LINEAR + 2 * 16,
        conv2d=SD_CONV2D,
        content=16 * 6,
        bos=16 * 2,
        splits=four_levels(320, 640, 1280),
    ),
    # stabilityai/stable-diffusion-xl-base-1.0, and SDXL-Turbo: 2 x 2 + 2 x 10 blocks down, 10 between, 3 x 10 + 3 x 2
    # up; 11 transformers with a projection in and out, 17 residual layers, embeddings of time and size.
    "sdxl": Architecture(
        SDXLFamily(),
        unet(
            [(320, PLAIN), (640, CROSS), (1280, CROSS)],
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        unet_inputs(64, 2048, 1280, 6),
        parameters=2_567_463_684,
        linear=70 * 10 + 2 * 11 + 17 + 2 + 2,
        conv2d=17 * 2 + (2 + 9) + (2 + 2) + 2,
        content=70 * 6,
        bos=70 * 2,
        splits=[(1280, 1280), (1280, 1280), (1280, 640), (1280, 640), (640, 640), (640, 320), (640, 320)]
        + [(320, 320)] * 2,
    ),
    # stabilityai/stable-diffusion-xl-refiner-1.0: 2 + 2 + 1 + 3 + 3 transformers of 4 blocks.
    "sdxl-refiner": Architecture(
        SDXLFamily(),
        unet(
            [(384, PLAIN), (768, CROSS), (1536, CROSS), (1536, PLAIN)],
            transformer_layers_per_block=4,
            attention_head_dim=[6, 12, 24, 24],
            cross_attention_dim=1280,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2560,
        ),
        unet_inputs(64, 1280, 1280, 5),
        parameters=2_259_526_660,
        linear=44 * 10 + 2 * 11 + 22 + 2 + 2,
        conv2d=SD_CONV2D,
        content=44 * 6,
        bos=44 * 2,
        splits=four_levels(384, 768, 1536),
    ),
    # black-forest-labs/FLUX.1-schnell, 1024 px: 19 blocks of two streams, each with a modulation, 4 projections and 2
    # feed-forward layers; 38 of one, with a modulation, 3 projections, and the two of the feed-forward layer. Of the
    # time, the text and the picture: 2 + 2 + 2, and 2 at the end.
    "flux-schnell": Architecture(
        FluxFamily(),
        FluxTransformer2DModel,
        joint_inputs(256, 768, hidden_states=(1, 4096, 64), img_ids=(4096, 3), txt_ids=(256, 3)),
        parameters=11_891_178_560,
        linear=19 * 2 * 7 + 38 * 6 + 8,
        conv2d=0,
        content=19 * 8 + 38 * 2 + 1,
        bos=0,
        splits=[(3072, 4 * 3072)] * 38,
    ),
    # stabilityai/stable-diffusion-3.5-large-turbo, 1024 px: 38 blocks of two streams; the last gives no text.
    "sd3.5-large-turbo": Architecture(
        SD3Family(),
        lambda: SD3Transformer2DModel(
            num_layers=38,
            num_attention_heads=38,
            caption_projection_dim=2432,
            pos_embed_max_size=192,
            qk_norm="rms_norm",
        ),
        joint_inputs(77 + 256, 2048, hidden_states=(1, 16, 128, 128)),
        parameters=8_056_627_520,
        linear=38 * 2 * 7 - 3 + 7,
        conv2d=1,
        content=38 * 8 - 3 + 1,
        bos=1,
        splits=[],
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_published_denoiser_has_the_layers_that_its_architecture_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ARCHITECTURES[name]
    for layer in (nn.Linear, nn.Conv2d):
        # There is nothing to fill, but torch takes its time over it.
        monkeypatch.setattr(layer, "reset_parameters", lambda self: None)
    with torch.device("meta"):
        denoiser = model.make().eval()
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == model.parameters
    with torch.no_grad():
        table = layer_specs(denoiser, model.family, lambda: denoiser(**model.inputs()))
    assert [layer.op for layer in table].count("linear") == model.linear
    assert [layer.op for layer in table].count("conv2d") == model.conv2d
    assert sum(layer.group == "content" for layer in table) == model.content
    assert sum(layer.bos for layer in table) == model.bos
    assert [layer.input_splits for layer in table if layer.input_splits] == model.splits
    if name == "sdxl":
        sizes = {group: sum(layer.weight_numel for layer in table if layer.group == group) for group in GROUPS}
        # r of the published sweep (arXiv 2405.17873, allocation of budgets between groups).
        assert sizes["content"] / sizes["quality"] == pytest.approx(2.241823, abs=5e-7)
