"""Flux: schnell, which is few-step, and others of its architecture."""

from collections.abc import Sequence

from diffusers import DiffusionPipeline, FluxPipeline
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformer2DModel
from torch import Tensor, nn

from mixdq.pipeline.families.joint import JointFamily


class FluxFamily(JointFamily):
    """`FluxPipeline` with a `FluxTransformer2DModel`."""

    name = "flux"
    description = "FluxPipeline with a FluxTransformer2DModel"

    def matches(self, pipe: DiffusionPipeline) -> bool:
        """Return whether this family knows `pipe`."""
        return isinstance(pipe, FluxPipeline) and isinstance(
            pipe.components.get(self.denoiser_name), FluxTransformer2DModel
        )

    def input_splits(self, denoiser: nn.Module) -> dict[str, tuple[int, ...]]:
        """Return layer -> (attention, feed-forward) channels for `proj_out` of every single-stream block.

        No skip join, but a concatenation too, of parts as unlike: averages of values, and what left a GELU.
        """
        return {
            f"{name}.proj_out": (block.attn.to_v.out_features, block.proj_mlp.out_features)
            for name, block in denoiser.named_modules()
            if isinstance(block, FluxSingleTransformerBlock)
        }

    def encode(self, pipe: DiffusionPipeline, prompts: Sequence[str], guidance_scale: float) -> dict[str, Tensor]:
        """Return the text embeddings of `prompts`, by the names under which the pipeline's call takes them.

        Guidance is an input of the denoiser, if anything: there is no negative prompt.
        """
        prompt_embeds, pooled, _ = pipe.encode_prompt(prompt=list(prompts), num_images_per_prompt=1)
        return {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled}
