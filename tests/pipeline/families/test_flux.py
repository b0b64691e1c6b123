import pytest

from mixdq.pipeline.families.flux import FluxFamily
from mixdq.testing import HEAD_WIDTH, HEADS, TEXT_WIDTH, tiny_flux_pipeline, tiny_sd3_pipeline

FAMILY = FluxFamily()
WIDTH = HEADS * HEAD_WIDTH


@pytest.mark.parametrize("guidance_scale", [0.0, 3.5])
def test_embeddings_have_the_names_of_the_pipelines_call(guidance_scale: float) -> None:
    embeddings = FAMILY.encode(tiny_flux_pipeline(), ["a cat", "a dog"], guidance_scale)
    assert {name: tuple(value.shape) for name, value in embeddings.items()} == {
        "prompt_embeds": (2, 512, TEXT_WIDTH),
        "pooled_prompt_embeds": (2, TEXT_WIDTH),
    }


def test_single_stream_blocks_end_in_a_join_of_attention_and_feed_forward() -> None:
    assert FAMILY.input_splits(tiny_flux_pipeline().transformer) == {
        f"single_transformer_blocks.{i}.proj_out": (WIDTH, 4 * WIDTH) for i in range(2)
    }


def test_a_foreign_transformer_is_not_known() -> None:
    pipe = tiny_flux_pipeline()
    assert FAMILY.matches(pipe)
    pipe.transformer = tiny_sd3_pipeline().transformer
    assert not FAMILY.matches(pipe)
