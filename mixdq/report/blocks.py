"""Layers by the block they belong to, as a model's own names tell it."""

from itertools import groupby

from mixdq.types.layers import LayerSpec, LayerTable

_DEPTH = 4
"""A block's name ends at its last number within so many parts: "down_blocks.1.attentions.0", "mid_block.resnets.1"."""


def blocks(table: LayerTable) -> list[tuple[str, list[LayerSpec]]]:
    """Return (block, layers) in the order of the table; neighbours outside all numbered blocks share one."""
    found = []
    for block, group in groupby(table, key=lambda layer: _block(layer.name)):
        layers = list(group)
        found.append((block or ", ".join(dict.fromkeys(layer.name.split(".")[0] for layer in layers)), layers))
    return found


def _block(name: str) -> str:
    parts = name.split(".")[:_DEPTH]
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[-1] + 1]) if numbers else ""
