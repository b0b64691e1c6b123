"""What the families with a joint-attention transformer (MM-DiT) share: two streams, text and picture, one attention."""

import re

from diffusers import DiffusionPipeline
from torch import nn

from mixdq.types.layers import Group

_CONTENT = re.compile(
    r"context_embedder"
    r"|.*\.attn\.(add_[qkv]_proj|to_add_out)"
    r"|.*\.ff(_context)?\.net\..*"
    r"|single_transformer_blocks\.\d+\.proj_(mlp|out)"
)


class JointFamily:
    """The part of `ModelFamily` that depends on the denoiser alone; families add how to match and to encode."""

    denoiser_name = "transformer"

    def denoiser(self, pipe: DiffusionPipeline) -> nn.Module:
        """Return the module of `pipe` that is quantized."""
        transformer = pipe.components[self.denoiser_name]
        assert isinstance(transformer, nn.Module)
        return transformer

    def group(self, layer_name: str) -> Group:
        """Return "content" for feed-forward layers and the text stream's own projections, "quality" for every other.

        A UNet takes the text in through cross-attention; here that is what the text stream projects into the joint
        attention and out of it. In a single-stream block `proj_mlp` is the feed-forward layer's first half, and four
        fifths of what `proj_out` reads its second. Modulation (`norm*.linear`) is to a transformer what time embeddings
        are to a UNet, and what the picture's tokens project is self-attention: quality.
        """
        return "content" if _CONTENT.fullmatch(layer_name) else "quality"

    def is_bos(self, layer_name: str) -> bool:
        """Return False: a stored row would be another prompt's.

        T5 is bidirectional and has no BOS token, and in the joint stream every token has read all others. Calibration
        of a layer that claims a first token in common raises BosNotConstantError.
        """
        return False

    def input_splits(self, denoiser: nn.Module) -> dict[str, tuple[int, ...]]:
        """Return {}: there are no skip joins."""
        return {}
