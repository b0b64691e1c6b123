import pytest
import torch

from mixdq.pipeline.families.sdxl import SDXLFamily
from mixdq.testing import TOKENS, tiny_sdxl_pipeline

FAMILY = SDXLFamily()


@pytest.mark.parametrize("text_encoders", [1, 2])
def test_embeddings_have_the_names_of_the_pipelines_call(text_encoders: int) -> None:
    pipe = tiny_sdxl_pipeline(text_encoders=text_encoders)
    embeddings = FAMILY.encode(pipe, ["a cat", "a dog"], 0.0)
    assert embeddings.keys() == {"prompt_embeds", "pooled_prompt_embeds"}
    assert embeddings["prompt_embeds"].shape == (2, TOKENS, 32 * text_encoders)
    with torch.no_grad():
        direct = pipe(
            prompt=["a cat", "a dog"],
            num_inference_steps=1,
            guidance_scale=0.0,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images
        by_name = pipe(
            **embeddings,
            num_inference_steps=1,
            guidance_scale=0.0,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images
    assert torch.equal(direct, by_name)


@pytest.mark.parametrize("zero_empty_prompt", [True, False])
def test_guidance_adds_the_negative_prompt_zeroed_where_the_model_does_so(zero_empty_prompt: bool) -> None:
    embeddings = FAMILY.encode(tiny_sdxl_pipeline(zero_empty_prompt=zero_empty_prompt), ["a cat"], 2.0)
    assert len(embeddings) == 4
    assert bool((embeddings["negative_prompt_embeds"] == 0).all()) == zero_empty_prompt
