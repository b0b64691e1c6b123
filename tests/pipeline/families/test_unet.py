import pytest

from mixdq.pipeline.families.unet import UNetFamily, guided, has_unet
from mixdq.testing import tiny_sd_pipeline, tiny_sdxl_pipeline

FAMILY = UNetFamily()


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
