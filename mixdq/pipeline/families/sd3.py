"""Stable Diffusion 3 and 3.5, and SD3.5-Turbo, which is few-step."""

from collections.abc import Sequence

from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor

from mixdq.pipeline.families.joint import JointFamily


class SD3Family(JointFamily):
    """`StableDiffusion3Pipeline` with an `SD3Transformer2DModel`.

    `attn2` of SD3.5-medium is the picture's self-attention, whatever the name means in a UNet.
    """

    name = "sd3"
    description = "StableDiffusion3Pipeline with an SD3Transformer2DModel"

    def matches(self, pipe: DiffusionPipeline) -> bool:
        """Return whether this family knows `pipe`."""
        return isinstance(pipe, StableDiffusion3Pipeline) and isinstance(
            pipe.components.get(self.denoiser_name), SD3Transformer2DModel
        )

    def is_bos(self, layer_name: str) -> bool:
        """Return whether the layer reads CLIP's tokens, which come before T5's: the way into the joint stream alone."""
        return layer_name == "context_embedder"

    def encode(self, pipe: DiffusionPipeline, prompts: Sequence[str], guidance_scale: float) -> dict[str, Tensor]:
        """Return the text embeddings of `prompts`, by the names under which the pipeline's call takes them."""
        embeddings = pipe.encode_prompt(
            prompt=list(prompts),
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=guidance_scale > 1.0,
            num_images_per_prompt=1,
        )
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return {name: value for name, value in zip(names, embeddings, strict=True) if value is not None}
