"""Stable Diffusion XL and its few-step descendants: SDXL-Turbo, LCM, Lightning, and the embedded model.

With two text encoders, or with `text_encoder_2` alone as in the refiner.
"""

from collections.abc import Sequence

from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor

from mixdq.pipeline.families.unet import UNetFamily, guided, has_unet


class SDXLFamily(UNetFamily):
    """`StableDiffusionXLPipeline` with a `UNet2DConditionModel`."""

    name = "sdxl"
    description = "StableDiffusionXLPipeline with a UNet2DConditionModel"

    def matches(self, pipe: DiffusionPipeline) -> bool:
        """Return whether this family knows `pipe`."""
        return isinstance(pipe, StableDiffusionXLPipeline) and has_unet(pipe)

    def encode(self, pipe: DiffusionPipeline, prompts: Sequence[str], guidance_scale: float) -> dict[str, Tensor]:
        """Return the text embeddings of `prompts`, by the names under which the pipeline's call takes them."""
        embeddings = pipe.encode_prompt(
            prompt=list(prompts), do_classifier_free_guidance=guided(pipe, guidance_scale), num_images_per_prompt=1
        )
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return {name: value for name, value in zip(names, embeddings, strict=True) if value is not None}
