"""How a quantized layer's numbers lie in its tensors: the portable layout, as it is in memory and on disk.

    weight              int8 of the weight's shape at 8 bits, of E4M3 floats their bytes; below, uint8 [out, bytes],
                        packed rows, parts side by side
    weight_scale        float32 [out, parts]
    weight_zero_point   int32 [out, parts]; absent where symmetric
    input_scale         float32 [parts]; absent where weight-only or dynamic
    input_zero_point    int32 [parts]; absent where weight-only or dynamic, or where codes are floats
    bos_input           float32 [in]; BOS layers only
    bos_output          float32 [out]; BOS layers only
    bias                in the model's dtype, as in the float layer

A part is a slice of the input channels with scales of its own; most layers have one. Not here: what runs on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixdq.quant.grid import holds
from mixdq.quant.packing import packed_row_bytes
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import QParams, QTensor, QuantSpec

EXACT_NAMES = (
    "weight_scale",
    "weight_zero_point",
    "input_scale",
    "input_zero_point",
    "bos_input",
    "bos_output",
)
"""The buffers, which no cast of the model may touch."""


@dataclass(frozen=True, kw_only=True)
class LayerLayout:
    """What must be known of a layer, besides its float shape, to name and shape its tensors.

    Attributes:
        name: its dotted path; for messages.
        bits: its widths; the weight's at most 8.
        symmetric: False where the weight has zero points; floats have none.
        splits: input channels of each part; empty where the input is one whole.
        bos: True where the first text token's output is stored.
        dynamic: True where a quantized input is scaled at run time; means nothing where weight-only.
    """

    name: str
    bits: LayerBits
    symmetric: bool = True
    splits: tuple[int, ...] = ()
    bos: bool = False
    dynamic: bool = False

    def __post_init__(self) -> None:
        if self.bits.weight == FLOAT_BITS:
            raise ValueError(
                f"{self.name}: {self.bits} keeps its weight in floating point, so it is no quantized layer"
            )
        if self.bits.is_float and not self.symmetric:
            raise ValueError(f"{self.name}: {self.bits} has no zero points")
        if any(channels < 1 for channels in self.splits):
            raise ValueError(f"{self.name}: parts {self.splits} must be positive")

    @property
    def num_parts(self) -> int:
        """The number of input parts."""
        return max(1, len(self.splits))

    @property
    def weight_only(self) -> bool:
        """Whether the input stays in floating point."""
        return self.bits.activation == FLOAT_BITS

    @property
    def weight_spec(self) -> QuantSpec:
        """How each part of the weight is quantized."""
        return QuantSpec(num_bits=self.bits.weight, symmetric=self.symmetric, channel_axis=0, number=self.bits.number)


def weight_shape_of(module: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    """Return the real shape of a layer's weight, whether it is float or quantized."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return module.out_channels, module.in_channels // module.groups, *module.kernel_size


def part_shapes(layout: LayerLayout, weight_shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the real shape of each part of a weight.

    Raises:
        ValueError: the parts do not add up to the weight's input channels.
    """
    channels = layout.splits or (weight_shape[1],)
    if sum(channels) != weight_shape[1]:
        raise ValueError(f"{layout.name}: parts {layout.splits} do not add up to {weight_shape[1]} input channels")
    return [(weight_shape[0], part, *weight_shape[2:]) for part in channels]


def tensor_specs(layout: LayerLayout, weight_shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return name -> shape and dtype of every tensor of a layer but its bias."""
    rows, parts = weight_shape[0], layout.num_parts
    specs: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    if layout.bits.weight == 8:
        specs["weight"] = (tuple(weight_shape), torch.int8)
    else:
        specs["weight"] = ((rows, sum(_part_bytes(layout, weight_shape))), torch.uint8)
    specs["weight_scale"] = ((rows, parts), torch.float32)
    if not layout.symmetric:
        specs["weight_zero_point"] = ((rows, parts), torch.int32)
    if not (layout.weight_only or layout.dynamic):
        specs["input_scale"] = ((parts,), torch.float32)
        if not layout.bits.is_float:
            specs["input_zero_point"] = ((parts,), torch.int32)
    if layout.bos:
        specs["bos_input"] = ((weight_shape[1],), torch.float32)
        specs["bos_output"] = ((rows,), torch.float32)
    return specs


def check_values(layout: LayerLayout, name: str, tensor: Tensor) -> None:
    """Return if a tensor's values can be a layer's: scales positive and finite, zero points codes, BOS rows finite.

    Raises:
        ValueError: they cannot; of codes only floats are looked at, which may not be NaN.
    """
    if name == "weight" and layout.bits.is_float and not holds(layout.weight_spec, tensor):
        raise ValueError(f"{layout.name}.{name}: NaN")
    if name.endswith("scale") and not bool(((tensor > 0) & torch.isfinite(tensor)).all()):
        raise ValueError(f"{layout.name}.{name}: scales must be positive and finite")
    if name.startswith("bos_") and not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{layout.name}.{name}: NaN or infinity")
    if name.endswith("zero_point"):
        num_bits = layout.bits.weight if name.startswith("weight") else layout.bits.activation
        if not holds(QuantSpec(num_bits=num_bits, symmetric=False), tensor):
            raise ValueError(f"{layout.name}.{name}: zero points must be codes of {num_bits} bits")


def join_parts(parts: Sequence[QTensor], activation: Sequence[QParams] | None) -> dict[str, Tensor]:
    """Return the layer's tensors that hold these parts, without BOS rows and bias; inputs' on the weight's device."""
    codes = [part.codes for part in parts]
    device = codes[0].device
    out = {"weight": codes[0] if len(codes) == 1 else torch.cat(codes, dim=1)}
    out["weight_scale"] = torch.stack([part.qparams.scale.reshape(-1) for part in parts], dim=1)
    zero_points = [part.qparams.zero_point for part in parts if part.qparams.zero_point is not None]
    if zero_points:
        out["weight_zero_point"] = torch.stack([zero_point.reshape(-1) for zero_point in zero_points], dim=1)
    if activation is not None:
        out["input_scale"] = torch.stack([q.scale.reshape(()) for q in activation]).to(device)
        zero_points = [q.zero_point for q in activation if q.zero_point is not None]
        if zero_points:
            out["input_zero_point"] = torch.stack([zero_point.reshape(()) for zero_point in zero_points]).to(device)
    return out


def split_parts(
    layout: LayerLayout, weight_shape: Sequence[int], weight: Tensor, scale: Tensor, zero_point: Tensor | None
) -> tuple[QTensor, ...]:
    """Return the parts held by a layer's tensors; the inverse of `join_parts`, copying nothing."""
    shapes = part_shapes(layout, weight_shape)
    if len(shapes) == 1:
        codes: Sequence[Tensor] = (weight,)
    elif layout.bits.weight == 8:
        codes = torch.split(weight, [shape[1] for shape in shapes], dim=1)
    else:
        codes = torch.split(weight, _part_bytes(layout, weight_shape), dim=1)
    column = (-1,) + (1,) * (len(weight_shape) - 1)
    return tuple(
        QTensor(
            codes=codes[i],
            qparams=QParams(
                scale=scale[:, i].reshape(column),
                zero_point=None if zero_point is None else zero_point[:, i].reshape(column),
                spec=layout.weight_spec,
            ),
            shape=shapes[i],
        )
        for i in range(len(shapes))
    )


def _part_bytes(layout: LayerLayout, weight_shape: Sequence[int]) -> list[int]:
    shapes = part_shapes(layout, weight_shape)
    return [packed_row_bytes(math.prod(shape[1:]), layout.bits.weight) for shape in shapes]
