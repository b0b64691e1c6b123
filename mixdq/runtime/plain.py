"""Which modules of diffusers are as they were made, so that what they do can be folded into quantized layers.

Whatever else (hooks, other kinds of norms, gates or processors, training) is left to diffusers' own code.
"""

from typing import Any

from torch import Tensor, nn

from mixdq.runtime.between import GATE, PROCESSOR, CpuAttention, CpuGeglu, is_plain
from mixdq.runtime.layer import QuantizedLayer


def are_bare(*modules: nn.Module) -> bool:
    """Return whether nothing watches the calls of modules, or stands in their place."""
    return not any(each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each) for each in modules)


def is_plain_resnet(block: Any, temb: Tensor | None) -> bool:
    """Return whether a `ResnetBlock2D` does what SDXL's do: norm, SiLU, convolution, twice, time shift and residual."""
    norms = block.norm1, block.norm2
    return (
        block.time_embedding_norm == "default"
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1.0
        and (block.time_emb_proj is None) == (temb is None)
        and type(block.nonlinearity) is nn.SiLU
        and all(type(norm) is nn.GroupNorm and norm.affine for norm in norms)
        and not block.dropout.training
        and are_bare(*norms, block.nonlinearity, block.dropout)
    )


def is_plain_block(block: Any) -> bool:
    """Return whether a `BasicTransformerBlock` does what SDXL's do, with layer norms that have a bias."""
    norms = [block.norm1, block.norm3, *([] if block.attn2 is None else [block.norm2])]
    return (
        block.norm_type == "layer_norm"
        and block.pos_embed is None
        and not block.only_cross_attention
        and block._chunk_size is None
        and all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in norms)
        and are_bare(*norms)
    )


def is_plain_attention(attn: Any) -> bool:
    """Return whether an `Attention` does nothing but projections, scores and sums."""
    return (
        (type(attn.processor).__name__ == PROCESSOR or isinstance(attn.processor, CpuAttention))
        and is_plain(attn)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1.0
        and not attn.to_out[1].training
        and are_bare(attn, attn.to_out[1])
    )


def is_plain_feed_forward(ff: Any) -> bool:
    """Return whether a `FeedForward` is a GEGLU and a projection."""
    gate, dropout, *_ = ff.net
    return (
        type(ff).__name__ == "FeedForward"
        and len(ff.net) == 3
        and type(gate).__name__ in (GATE, CpuGeglu.__name__)
        and not dropout.training
        and are_bare(ff, gate, dropout)
    )


def folds(layer: nn.Module) -> bool:
    """Return whether a norm may go into a layer, or others beside it."""
    return isinstance(layer, QuantizedLayer) and are_bare(layer)
