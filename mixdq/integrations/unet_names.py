"""The names that a UNet's tensors have in checkpoints as communities share them, by diffusers' names.

Such files number the blocks through (`input_blocks.4.1`) where diffusers nests them (`down_blocks.1.attentions.0`).
"""

from collections.abc import Callable
from typing import Any

from mixdq.errors import UnsupportedModelError

KNOWN_BLOCKS = frozenset(
    {"DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", "UpBlock2D"}
)
SHOWN = 8

_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def community_names(unet: Any) -> Callable[[str], str]:
    """Return the function from diffusers' name of a tensor or module of `unet` to the community's, without a prefix.

    `unet` is a `UNet2DConditionModel`, quantized or not.

    Raises:
        UnsupportedModelError: the UNet has blocks or tensors that this layout has no names for.
    """
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    odd = sorted({type(block).__name__ for block in blocks} - KNOWN_BLOCKS)
    places = {} if odd else _places(unet)

    def renamed(name: str) -> str:
        place = next((place for place in places if f"{name}.".startswith(f"{place}.")), None)
        if place is None:
            raise KeyError(name)
        inner = name.removeprefix(place).split(".")
        if ".resnets." in place:
            inner[1] = _RESIDUAL[inner[1]]
        return places[place] + ".".join(inner)

    for name in () if odd else unet.state_dict():
        try:
            renamed(name)
        except KeyError:
            odd.append(name)
    if odd:
        more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
        raise UnsupportedModelError(
            f"{type(unet).__name__}: community checkpoints have no names for its {', '.join(odd[:SHOWN])}{more}"
        )
    return renamed


def _places(unet: Any) -> dict[str, str]:
    """Return diffusers' name -> the community's of every block's parts."""
    places = dict(_ENDS)
    index = 0
    for b, block in enumerate(unet.down_blocks):
        for i in range(len(block.resnets)):
            index += 1
            _put(places, f"down_blocks.{b}", i, block, f"input_blocks.{index}")
        if block.downsamplers:
            index += 1
            places[f"down_blocks.{b}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
    places["mid_block.resnets.0"] = "middle_block.0"
    for i in range(len(unet.mid_block.attentions)):
        places[f"mid_block.attentions.{i}"] = f"middle_block.{2 * i + 1}"
        places[f"mid_block.resnets.{i + 1}"] = f"middle_block.{2 * i + 2}"
    index = -1
    for b, block in enumerate(unet.up_blocks):
        parts = 1
        for i in range(len(block.resnets)):
            index += 1
            parts = _put(places, f"up_blocks.{b}", i, block, f"output_blocks.{index}")
        if block.upsamplers:
            places[f"up_blocks.{b}.upsamplers.0.conv"] = f"output_blocks.{index}.{parts}.conv"
    return places


def _put(places: dict[str, str], name: str, index: int, block: Any, place: str) -> int:
    """Enter a residual layer and the attention after it, if any; return how many there are."""
    places[f"{name}.resnets.{index}"] = f"{place}.0"
    if not hasattr(block, "attentions"):
        return 1
    places[f"{name}.attentions.{index}"] = f"{place}.1"
    return 2
