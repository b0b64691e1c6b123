"""The sensitivities of the real SDXL-Turbo that the authors released, as tables of ours; their data is not shipped."""

from pathlib import Path
from typing import Any

import yaml

from mixdq.types.layers import Group, LayerSpec, LayerTable
from mixdq.types.scores import ROLES, Score, SensitivityTable

WIDTHS = (2, 4, 8)
WEIGHT_UNIT, INPUT_UNIT = 11520, 320
"""Elements in one of the units that sizes are written in: of `conv_in`'s weight, of the time embedding's input."""

METRICS: dict[Group, str] = {"content": "ssim", "quality": "sqnr"}


def released_tables(folder: Path) -> tuple[LayerTable, SensitivityTable]:
    """Return the 794 layers with their sizes, and both roles' scores at 2, 4 and 8 bits.

    Shapes are not in the files: a weight is listed with 320 rows, which minds nobody but the bytes of scales.
    """
    weights, inputs = _load(folder, "size_weight"), _load(folder, "size_activation")
    layers = []
    for name, size in weights.items():
        numel = round(size * WEIGHT_UNIT)
        group: Group = "content" if ".attn2." in name or ".ff." in name else "quality"
        layers.append(
            LayerSpec(
                name=name,
                op="linear",
                group=group,
                weight_shape=(320, numel // 320),
                input_numel=round(inputs[name] * INPUT_UNIT),
                macs=1,
            )
        )
    scores = []
    for role in ROLES:
        for group, metric in METRICS.items():
            values = _load(folder, f"sensitivity_{role}_{metric}")
            for layer in layers:
                if layer.group == group:
                    scores += [
                        Score(layer=layer.name, role=role, num_bits=bits, metric=metric, value=value)
                        for bits, value in zip(WIDTHS, values[layer.name], strict=True)
                    ]
    table = LayerTable(model="sdxl-turbo", family="sdxl", digest="released", layers=tuple(layers))
    return table, SensitivityTable(scores=tuple(scores), origin={})


def _load(folder: Path, name: str) -> dict[str, Any]:
    with (folder / f"{name}.yaml").open(encoding="utf-8") as file:
        entries = yaml.load(file, yaml.CSafeLoader)
    return {key.removeprefix("model."): value for key, value in entries.items()}
