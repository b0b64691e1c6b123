"""Stable Diffusion 1.x and 2.x and their few-step descendants: SD-Turbo, LCM."""

from collections.abc import Sequence

from diffusers import DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor

from mixdq.pipeline.families.unet import UNetFamily, guided, has_unet


class SDFamily(UNetFamily):
    """`StableDiffusionPipeline` with a `UNet2DConditionModel`."""

    name = "sd"
    description = "StableDiffusionPipeline with a UNet2DConditionModel"

    def matches(self, pipe: DiffusionPipeline) -> bool:
        """Return whether this family knows `pipe`."""
        return isinstance(pipe, StableDiffusionPipeline) and has_unet(pipe)

    def encode(self, pipe: DiffusionPipeline, prompts: Sequence[str], guidance_scale: float) -> dict[str, Tensor]:
        """Return the text embeddings of `prompts`, by the names under which the pipeline's call takes them."""
        embeddings = pipe.encode_prompt(
            prompt=list(prompts),
            device=pipe._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided(pipe, guidance_scale),
        )
        names = ("prompt_embeds", "negative_prompt_embeds")
        return {name: value for name, value in zip(names, embeddings, strict=True) if value is not None}
