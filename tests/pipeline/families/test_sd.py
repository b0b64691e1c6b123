from mixdq.pipeline.families.sd import SDFamily
from mixdq.testing import TOKENS, tiny_sd_pipeline

FAMILY = SDFamily()


def test_embeddings_have_the_names_of_the_pipelines_call() -> None:
    pipe = tiny_sd_pipeline()
    assert FAMILY.encode(pipe, ["a cat", "a dog"], 0.0).keys() == {"prompt_embeds"}
    embeddings = FAMILY.encode(pipe, ["a cat", "a dog"], 2.0)
    assert embeddings.keys() == {"prompt_embeds", "negative_prompt_embeds"}
    assert embeddings["negative_prompt_embeds"].shape == (2, TOKENS, 32)
    assert bool(embeddings["negative_prompt_embeds"].any())
