"""A UNet's blocks on a GPU: norms, gates and residuals go into the passes of the quantized layers after and before.

diffusers' blocks, known by name, become of a class made of ours and their own. For whatever ours does not know (hooks
inside, masks, other processors, gradients, training, other devices) it leaves a call to their own. Layers that are not
quantized, or wrapped in adapters, are called as ever, each for itself. No weight and no name is touched.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixdq.runtime.before import GEGLU, NOTHING, SILU, Before, group_norm, layer_norm
from mixdq.runtime.between import OUTPUT, ChannelsLastOutput
from mixdq.runtime.folding import fold
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.plain import (
    are_bare,
    folds,
    is_plain_attention,
    is_plain_block,
    is_plain_feed_forward,
    is_plain_resnet,
)
from mixdq.runtime.reading import Begun, begin, read
from mixdq.runtime.together import together

DEVICE = available.device_type()
UNET, TIME = "UNet2DConditionModel", "get_time_embed"
"""diffusers' UNet and the first of its steps. Where a diffusers has no such step, blocks are on their own."""


class Folding:
    """What the classes of blocks have in common."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, type(self).__bases__, vars(self)


class FoldedResnet(Folding):
    """`ResnetBlock2D`: both of its norms with SiLU, the time embedding's shift and the residual are folded."""

    def forward(self: Any, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any) -> Tensor:
        """Return the block's output [batch, out, height, width]."""
        if args or kwargs or not is_plain_resnet(self, temb) or not _is_ours(input_tensor):
            y: Tensor = _otherwise(FoldedResnet, self).forward(input_tensor, temb, *args, **kwargs)
            return y
        shift = None
        if temb is not None:
            shift = _shifted(self, temb)[:, :, None, None]
        y = _run(self.conv1, input_tensor, -3, group_norm(self.norm1, silu=True), shift)
        residual = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return _run(self.conv2, y, -3, group_norm(self.norm2, silu=True), residual)


class FoldedTransformerBlock(Folding):
    """`BasicTransformerBlock`: its norms, its gate and its residuals are folded."""

    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Return the block's output [batch, tokens, width]."""
        if cross_attention_kwargs or args or not is_plain_block(self) or not _is_ours(hidden_states):
            y: Tensor = _otherwise(FoldedTransformerBlock, self).forward(
                *(hidden_states, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep),
                *(cross_attention_kwargs, *args),
                **kwargs,
            )
            return y
        y = _attended(self.attn1, self.norm1, hidden_states, None, attention_mask)
        if self.attn2 is not None:
            y = _attended(self.attn2, self.norm2, y, encoder_hidden_states, encoder_attention_mask)
        return _fed_forward(self.ff, self.norm3, y)


class FoldedTransformer(Folding):
    """`Transformer2DModel`: the norm before its first projection is folded."""

    def _operate_on_continuous_inputs(self: Any, hidden_states: Tensor) -> tuple[Tensor, int]:
        plain = type(self.norm) is nn.GroupNorm and self.norm.affine and are_bare(self.norm)
        if not plain or not _is_ours(hidden_states):
            found: tuple[Tensor, int] = _otherwise(FoldedTransformer, self)._operate_on_continuous_inputs(hidden_states)
            return found
        before = group_norm(self.norm, silu=False)
        if self.use_linear_projection:
            tokens = hidden_states.permute(0, 2, 3, 1).flatten(1, 2)
            return _run(self.proj_in, tokens, -1, before), hidden_states.shape[1]
        y = _run(self.proj_in, hidden_states, -3, before)
        return y.permute(0, 2, 3, 1).flatten(1, 2), y.shape[1]


class FoldedOutput(ChannelsLastOutput):
    """The last step of a transformer: its residual is folded."""

    def __call__(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        """Return [batch, inner, height, width] of tokens [batch, height * width, inner], projected, plus `residual`."""
        if not _is_ours(hidden_states):
            return super().__call__(hidden_states, residual, batch_size, height, width, inner_dim)
        last = self.transformer.proj_out
        if self.transformer.use_linear_projection:
            y = _run(last, hidden_states, -1, NOTHING, residual.permute(0, 2, 3, 1).flatten(1, 2))
            return y.view(batch_size, height, width, -1).permute(0, 3, 1, 2)
        picture = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
        return _run(last, picture, -3, NOTHING, residual)


class FoldedTime:
    """The first step of a UNet: layers that read the text, or the time, are called together from then on."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self._begun = Begun()

    def __reduce__(self) -> tuple[Any, ...]:
        return FoldedTime, (self.unet,)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Return the UNet's embedding of the time step."""
        if not torch.compiler.is_compiling():
            unet = self.unet
            begin(self._begun, {"text": lambda: _text_readers(unet), "time": lambda: _time_readers(unet)})
        embedded: Tensor | None = getattr(type(self.unet), TIME)(self.unet, *args, **kwargs)
        return embedded


FOLDED: dict[str, type[Folding]] = {
    "ResnetBlock2D": FoldedResnet,
    "BasicTransformerBlock": FoldedTransformerBlock,
    "Transformer2DModel": FoldedTransformer,
}


def fold_blocks(denoiser: nn.Module) -> int:
    """Have blocks fold what stands around their layers on a GPU, and return how many there are; 0 where none is."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        return 0
    blocks = 0
    # Not of a class of ours, by which diffusers would not know it.
    if type(denoiser).__name__ == UNET and hasattr(denoiser, TIME):
        setattr(denoiser, TIME, FoldedTime(denoiser))
    for module in denoiser.modules():
        replaced: Any = type(module)
        ours: Any = None if isinstance(module, Folding) else FOLDED.get(replaced.__name__)
        if ours is not None:
            module.__class__ = _kind(ours, replaced)
            if ours is FoldedTransformer and hasattr(module, OUTPUT):
                setattr(module, OUTPUT, FoldedOutput(module))
            blocks += 1
    return blocks


def unfold_blocks(denoiser: nn.Module) -> int:
    """Undo `fold_blocks`, and return how many blocks were changed."""
    blocks = [module for module in denoiser.modules() if isinstance(module, Folding)]
    for module in blocks:
        module.__class__ = type(module).__bases__[1]
        if isinstance(vars(module).get(OUTPUT), FoldedOutput):
            delattr(module, OUTPUT)
    if isinstance(vars(denoiser).get(TIME), FoldedTime):
        delattr(denoiser, TIME)
    return len(blocks)


@cache
def _kind(ours: Any, replaced: Any) -> Any:
    return type(replaced.__name__, (ours, replaced), {})


def _empty(*bases: type) -> Any:
    kind = _kind(*bases)
    return kind.__new__(kind)


def _otherwise(ours: type, module: Any) -> Any:
    return super(ours, module)


def _run(layer: nn.Module, x: Tensor, axis: int, before: Before, added: Tensor | None = None) -> Tensor:
    """Return `layer(before(x)) + added`, folded where the layer is quantized and nothing watches it."""
    if isinstance(layer, QuantizedLayer) and are_bare(layer):
        return fold(layer, x, before, added)
    y: Tensor = layer(before(x, axis))
    return y if added is None else y + added


def _attended(attn: Any, norm: Any, x: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
    if mask is not None or not is_plain_attention(attn):
        y: Tensor = attn(norm(x), encoder_hidden_states=text, attention_mask=mask) + x
        return y
    own = [attn.to_q] if text is not None else [attn.to_q, attn.to_k, attn.to_v]
    # Where one of them cannot fold it, the norm is computed once for all.
    fold_norm = all(folds(each) for each in own)
    source, before = (x, layer_norm(norm)) if fold_norm else (norm(x), NOTHING)
    query, *others = _each(own, source, before)
    key, value = others or _of_text([attn.to_k, attn.to_v], text)
    query, key, value = (each.view(*each.shape[:2], attn.heads, -1).transpose(1, 2) for each in (query, key, value))
    y = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return _run(attn.to_out[0], y, -1, NOTHING, x)


def _each(layers: Sequence[Any], x: Tensor, before: Before) -> list[Tensor]:
    """Return what layers make of one input, together where they can."""
    if len(layers) > 1 and all(folds(each) for each in layers):
        return together(layers, x, before)
    return [_run(each, x, -1, before) for each in layers]


def _of_text(layers: Sequence[Any], text: Any) -> list[Tensor]:
    found = [read("text", each, text, NOTHING) if folds(each) else None for each in layers]
    if not any(y is not None for y in found):
        return _each(layers, text, NOTHING)
    return [_run(each, text, -1, NOTHING) if y is None else y for each, y in zip(layers, found, strict=True)]


def _shifted(block: Any, temb: Tensor) -> Tensor:
    """Return what a resnet's own projection makes of the time embedding."""
    layer, before = block.time_emb_proj, NOTHING if block.skip_time_act else SILU
    found = read("time", layer, temb, SILU) if before is SILU and folds(layer) else None
    return _run(layer, temb, -1, before) if found is None else found


def _text_readers(unet: nn.Module) -> list[QuantizedLinear]:
    """Return the layers that make keys and values of the text in blocks that read a UNet's own."""
    blocks: Any = (each for each in _blocks_of(unet) if isinstance(each, FoldedTransformerBlock) and _reads_text(each))
    return [layer for block in blocks for layer in (block.attn2.to_k, block.attn2.to_v) if folds(layer)]


def _reads_text(block: Any) -> bool:
    return block.attn2 is not None and is_plain_block(block) and is_plain_attention(block.attn2)


def _time_readers(unet: nn.Module) -> list[QuantizedLinear]:
    blocks: Any = (block for block in _blocks_of(unet) if isinstance(block, FoldedResnet))
    layers = [block.time_emb_proj for block in blocks if not block.skip_time_act]
    return [layer for layer in layers if layer is not None and folds(layer)]


# Not the blocks themselves, whose hooks may hold the UNet.
_BLOCKS: WeakKeyDictionary[nn.Module, list[ReferenceType[nn.Module]]] = WeakKeyDictionary()


def _blocks_of(unet: nn.Module) -> list[Any]:
    """Return a UNet's folded blocks, looked for once."""
    if unet not in _BLOCKS:
        _BLOCKS[unet] = [ref(module) for module in unet.modules() if isinstance(module, Folding)]
    return [module for module in (each() for each in _BLOCKS[unet]) if module is not None]


def _fed_forward(ff: Any, norm: Any, x: Tensor) -> Tensor:
    if not is_plain_feed_forward(ff):
        y: Tensor = ff(norm(x)) + x
        return y
    return _run(ff.net[2], _run(ff.net[0].proj, x, -1, layer_norm(norm)), -1, GEGLU, x)


def _is_ours(x: Tensor) -> bool:
    return x.device.type == DEVICE and not torch.is_grad_enabled()
