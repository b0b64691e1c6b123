from dataclasses import replace

import pytest

from mixdq.calibration.collect import calibrate
from mixdq.errors import BosNotConstantError
from mixdq.pipeline.families.joint import JointFamily
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.testing import tiny_flux_pipeline, tiny_sd3_pipeline

FAMILY = JointFamily()


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("context_embedder", "content"),
        ("transformer_blocks.0.attn.add_q_proj", "content"),
        ("transformer_blocks.0.attn.add_k_proj", "content"),
        ("transformer_blocks.0.attn.to_add_out", "content"),
        ("transformer_blocks.11.ff.net.0.proj", "content"),
        ("transformer_blocks.11.ff_context.net.2", "content"),
        ("single_transformer_blocks.3.proj_mlp", "content"),
        ("single_transformer_blocks.3.proj_out", "content"),
        ("single_transformer_blocks.3.attn.to_k", "quality"),
        ("single_transformer_blocks.3.norm.linear", "quality"),
        ("transformer_blocks.0.attn.to_k", "quality"),
        ("transformer_blocks.0.attn.to_out.0", "quality"),
        # The picture's second self-attention in SD3.5-medium.
        ("transformer_blocks.0.attn2.to_k", "quality"),
        ("transformer_blocks.0.norm1_context.linear", "quality"),
        ("time_text_embed.text_embedder.linear_1", "quality"),
        ("x_embedder", "quality"),
        ("pos_embed.proj", "quality"),
        ("norm_out.linear", "quality"),
        ("proj_out", "quality"),
    ],
)
def test_a_layer_belongs_where_its_name_says(name: str, group: str) -> None:
    assert FAMILY.group(name) == group
    assert not FAMILY.is_bos(name)


def test_the_transformer_is_the_denoiser() -> None:
    pipe = tiny_sd3_pipeline()
    assert FAMILY.denoiser(pipe) is pipe.transformer


@pytest.mark.parametrize("build", [tiny_flux_pipeline, tiny_sd3_pipeline])
def test_a_layer_that_claims_a_constant_first_token_is_refused(build) -> None:
    pipe, spec = build(), GenerationSpec(height=16, width=16)
    family = find_family(pipe)
    table = list_layers(pipe, family, spec, model="tiny")
    name = "transformer_blocks.0.attn.add_k_proj"
    claiming = replace(table, layers=tuple(replace(layer, bos=layer.name == name) for layer in table))
    with pytest.raises(BosNotConstantError, match=rf"{name}: .*differs from prompt to prompt.*causal"):
        calibrate(pipe, family, claiming, ["a cat", "two dogs"], spec)
