import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from mixdq.pipeline.families.unet import UNetFamily, guided, has_unet
from mixdq.pipeline.layers import quantizable_layers
from mixdq.testing import tiny_sd_pipeline, tiny_sdxl_pipeline

FAMILY = UNetFamily()


@pytest.fixture(scope="module")
def sdxl_unet() -> nn.Module:
    """The denoiser of stabilityai/stable-diffusion-xl-base-1.0 by its published configuration, without storage."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def test_sdxl_has_the_layers_that_the_paper_counts(sdxl_unet: nn.Module) -> None:
    layers = dict(quantizable_layers(sdxl_unet))
    assert sum(isinstance(layer, nn.Linear) for layer in layers.values()) == 743
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers.values()) == 51
    assert sum(FAMILY.is_bos(name) for name in layers) == 140
    content = [name for name in layers if FAMILY.group(name) == "content"]
    assert len(content) == 420


def test_sdxl_groups_hold_the_published_share_of_weights(sdxl_unet: nn.Module) -> None:
    sizes = {"content": 0, "quality": 0}
    for name, layer in quantizable_layers(sdxl_unet):
        sizes[FAMILY.group(name)] += layer.weight.numel()
    # r of the published sweep (arXiv 2405.17873, allocation of budgets between groups).
    assert sizes["content"] / sizes["quality"] == pytest.approx(2.241823, abs=5e-7)


def test_sdxl_shortcuts_split_at_the_published_channels(sdxl_unet: nn.Module) -> None:
    splits = FAMILY.input_splits(sdxl_unet)
    assert [parts[0] for parts in splits.values()] == [1280, 1280, 1280, 1280, 640, 640, 640, 320, 320]
    for name, parts in splits.items():
        assert sum(parts) == sdxl_unet.get_submodule(name).in_channels


@pytest.mark.parametrize(
    ("name", "group", "bos"),
    [
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "content", True),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", "content", True),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_q", "content", False),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", "content", False),
        ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", "content", False),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_k", "quality", False),
        ("mid_block.attentions.0.proj_in", "quality", False),
        ("conv_in", "quality", False),
        ("time_embedding.linear_1", "quality", False),
    ],
)
def test_a_layer_belongs_where_its_name_says(name: str, group: str, bos: bool) -> None:
    assert FAMILY.group(name) == group
    assert FAMILY.is_bos(name) == bos


def test_the_unet_is_found_and_its_absence_too() -> None:
    pipe = tiny_sd_pipeline()
    assert has_unet(pipe)
    assert FAMILY.denoiser(pipe) is pipe.unet
    pipe.unet = None
    assert not has_unet(pipe)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 7.5])
def test_guidance_is_the_pipelines_own_rule(scale: float) -> None:
    pipe = tiny_sdxl_pipeline()
    pipe._guidance_scale = scale
    assert guided(pipe, scale) == pipe.do_classifier_free_guidance
