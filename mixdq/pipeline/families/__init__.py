"""One module a model family; `mixdq.pipeline.family.FAMILIES` lists them."""
