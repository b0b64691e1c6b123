import pytest
import torch

from mixdq.pipeline.families.sd3 import SD3Family
from mixdq.testing import TEXT_WIDTH, TOKENS, tiny_flux_pipeline, tiny_sd3_pipeline

FAMILY = SD3Family()
# CLIP's tokens, then T5's 256.
SHAPES = {"prompt_embeds": (2, TOKENS + 256, 3 * TEXT_WIDTH), "pooled_prompt_embeds": (2, 2 * TEXT_WIDTH)}


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 2.0])
def test_embeddings_have_the_names_of_the_pipelines_call(guidance_scale: float) -> None:
    pipe = tiny_sd3_pipeline()
    pipe._guidance_scale = guidance_scale
    embeddings = FAMILY.encode(pipe, ["a cat", "a dog"], guidance_scale)
    expected = SHAPES | {
        f"negative_{name}": shape for name, shape in SHAPES.items() if pipe.do_classifier_free_guidance
    }
    assert {name: tuple(value.shape) for name, value in embeddings.items()} == expected


def test_there_is_nothing_joined() -> None:
    assert FAMILY.input_splits(tiny_sd3_pipeline().transformer) == {}


def test_a_foreign_transformer_is_not_known() -> None:
    pipe = tiny_sd3_pipeline()
    assert FAMILY.matches(pipe)
    pipe.transformer = tiny_flux_pipeline().transformer
    assert not FAMILY.matches(pipe)


def test_clips_first_token_is_the_same_for_every_prompt_on_the_way_in() -> None:
    states = FAMILY.encode(tiny_sd3_pipeline(), ["a cat", "two dogs"], 0.0)["prompt_embeds"]
    assert torch.equal(states[0, 0], states[1, 0])
    assert FAMILY.is_bos("context_embedder")
    assert not FAMILY.is_bos("transformer_blocks.0.attn.add_k_proj")
