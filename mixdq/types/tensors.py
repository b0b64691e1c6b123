"""Quantized tensors and what is known of activations. The one formula of the project:

real = (code - zero_point) * scale

Where codes are E4M3 floats there is no zero point, and the float that a code stands for takes the code's place.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mixdq.types.plan import Number


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """How a tensor is quantized.

    Attributes:
        num_bits: 2 to 8.
        symmetric: codes in [-(2^(b-1) - 1), 2^(b-1) - 1] without zero point; else in [-2^(b-1), 2^(b-1) - 1] with one.
        channel_axis: the axis with a scale of its own for each index; None for one scale for the whole tensor.
        group_size: elements of a channel that share a scale; None for the whole channel.
        number: "float" where codes are E4M3 floats (8 bits, symmetric) and not integers.
    """

    num_bits: int
    symmetric: bool
    channel_axis: int | None = None
    group_size: int | None = None
    number: Number = "int"

    def __post_init__(self) -> None:
        if self.is_float and not (self.num_bits == 8 and self.symmetric):
            raise ValueError("E4M3 floats have 8 bits and no zero point")
        if not 2 <= self.num_bits <= 8:
            raise ValueError(f"num_bits = {self.num_bits}: expected 2 to 8")
        if self.group_size is not None and (self.channel_axis is None or self.group_size < 1):
            raise ValueError("group_size needs a channel_axis and must be positive")

    @property
    def is_float(self) -> bool:
        """Whether codes are E4M3 floats."""
        return self.number == "float"

    @property
    def code_min(self) -> int:
        """The least code; ValueError where codes are no integers."""
        self._check_integers()
        return -(1 << (self.num_bits - 1)) + (1 if self.symmetric else 0)

    @property
    def code_max(self) -> int:
        """The greatest code; ValueError where codes are no integers."""
        self._check_integers()
        return (1 << (self.num_bits - 1)) - 1

    def _check_integers(self) -> None:
        if self.is_float:
            raise ValueError("codes of E4M3 floats are no range of integers")


@dataclass(frozen=True, kw_only=True)
class QParams:
    """Scale (float32, positive, finite) and zero point (int32, a code; None where symmetric).

    Both have shape [] per tensor, or [channels, 1, ...], broadcastable to the tensor.
    """

    scale: Tensor
    zero_point: Tensor | None
    spec: QuantSpec


@dataclass(frozen=True, kw_only=True)
class QTensor:
    """A weight as codes, in the portable layout that is saved and that every backend starts from.

    `codes` is int8 of `shape` at 8 bits (of an E4M3 float, its byte); below, uint8 [out, bytes of a row]: each output
    channel's row, flattened, is packed by itself (see `mixdq.quant.packing`). `shape` is the real tensor's.
    """

    codes: Tensor
    qparams: QParams
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ActivationRange:
    """The range of one layer input over calibration: finite, with or without 0 in it; `batches` seen."""

    min: float
    max: float
    batches: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min) and math.isfinite(self.max) and self.min <= self.max and self.batches > 0):
            raise ValueError(f"range [{self.min}, {self.max}] over {self.batches} batches")


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """What calibration learned.

    Attributes:
        ranges: layer -> one range, or one for each part of a joined input. BOS layers' are of tokens 1.. alone.
        bos_input: the text encoder's first token state [features]; None where the model has no BOS layers.
        bos_outputs: BOS layer -> its floating-point output for that token [out_features].
        origin: what it was made from -> digest.
    """

    ranges: Mapping[str, tuple[ActivationRange, ...]]
    bos_input: Tensor | None = None
    bos_outputs: Mapping[str, Tensor] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
