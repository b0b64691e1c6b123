"""What is decided: bits for every layer, and the budget they were found under."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from mixdq.errors import ConfigError
from mixdq.types.layers import Group

FLOAT_BITS = 16
"""The width that stands for "left in floating point"."""

MIN_BITS, MAX_BITS = 2, 8

WEIGHT_CHOICES: Mapping[Group, tuple[int, ...]] = MappingProxyType({"content": (2, 4, 8), "quality": (4, 8)})
ACTIVATION_CHOICES: Mapping[Group, tuple[int, ...]] = MappingProxyType({"content": (4, 8), "quality": (4, 8)})
"""The candidate widths of each group, as published."""

Activations = Literal["static", "dynamic"]
"""Where the scale of a quantized input comes from: from calibration, or at run time from each row or picture itself."""

Number = Literal["int", "float"]
"""What codes of 8 bits or fewer stand for: integers, or E4M3 floats, which have 8 bits; see `mixdq.quant.e4m3`."""

_LAYER_BITS = re.compile(r"W(\d{1,2})A(\d{1,2})( float)?")


def check_bits(num_bits: int) -> int:
    """Return `num_bits` if a layer can have that width (2 to 8, or 16); raise ValueError otherwise."""
    if not (MIN_BITS <= num_bits <= MAX_BITS or num_bits == FLOAT_BITS):
        raise ValueError(f"{num_bits} bits: expected {MIN_BITS} to {MAX_BITS}, or {FLOAT_BITS} for floating point")
    return num_bits


def is_dynamic(activations: str) -> bool:
    """Return whether inputs are scaled at run time; ConfigError where `activations` is none of `Activations`."""
    if activations not in ("static", "dynamic"):
        raise ConfigError(f"activations = {activations!r}: expected 'static' or 'dynamic'")
    return activations == "dynamic"


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """The widths of one layer, written "W4A8"; 16 means left in floating point.

    With E4M3 floats in the place of integers, on both sides, it is "W8A8 float".

    >>> str(LayerBits(weight=4, activation=8)), str(LayerBits(weight=8, activation=8, number="float"))
    ('W4A8', 'W8A8 float')
    """

    weight: int
    activation: int
    number: Number = "int"

    def __post_init__(self) -> None:
        check_bits(self.weight)
        check_bits(self.activation)
        if self.number not in ("int", "float"):
            raise ValueError(f"number = {self.number!r}: expected 'int' or 'float'")
        if self.is_float and not self.weight == self.activation == 8:
            raise ValueError(f"{self}: E4M3 floats have 8 bits, so only W8A8 float is there")

    @property
    def is_float(self) -> bool:
        """Whether codes are E4M3 floats."""
        return self.number == "float"

    def __str__(self) -> str:
        return f"W{self.weight}A{self.activation}{' float' if self.is_float else ''}"

    @staticmethod
    def parse(text: str) -> "LayerBits":
        """Return the widths written as "W4A8" or "W8A8 float"; raise ValueError for anything else."""
        match = _LAYER_BITS.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not of the form W4A8 or W8A8 float")
        return LayerBits(weight=int(match[1]), activation=int(match[2]), number="float" if match[3] else "int")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What an allocation may spend, and on what (arXiv 2405.17873, integer programming).

    Attributes:
        weight_bits: greatest mean bits a weight element, kept and protected layers counted; None where it is not asked.
        activation_bits: greatest mean bits an input element; 16 leaves every activation in floating point.
        weight_bytes: greatest bytes of all packed weights with scales and zero points; None where it is not asked.
        latency_ms: greatest milliseconds of one denoiser call for one picture; None where it is not asked.
        weight_choices, activation_choices: the candidate widths of each group.
        protect: share of each group's layers, the most sensitive, whose activations stay in floating point.
        keep: names of layers left wholly in floating point.
    """

    weight_bits: float | None = None
    activation_bits: float = 8.0
    weight_bytes: int | None = None
    latency_ms: float | None = None
    weight_choices: Mapping[Group, tuple[int, ...]] = field(default_factory=lambda: dict(WEIGHT_CHOICES))
    activation_choices: Mapping[Group, tuple[int, ...]] = field(default_factory=lambda: dict(ACTIVATION_CHOICES))
    protect: float = 0.01
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.weight_bits is None and self.weight_bytes is None and self.latency_ms is None:
            raise ValueError("a budget names weight_bits, weight_bytes or latency_ms")
        if not 0.0 <= self.protect <= 1.0:
            raise ValueError(f"protect = {self.protect} is not a share between 0 and 1")
        for choices in (self.weight_choices, self.activation_choices):
            for widths in choices.values():
                if not widths:
                    raise ValueError("a group needs at least one candidate width")
                for width in widths:
                    check_bits(width)


@dataclass(frozen=True, kw_only=True)
class SolverFacts:
    """How a plan was found: solver, objective of each part, ratio of the sweep, proven gap."""

    solver: str
    objective: str
    values: Mapping[str, float]
    content_quality_ratio: float | None = None
    gap: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BitPlan:
    """Bits for every quantizable layer of one denoiser.

    `name` labels the plan, `layers` keeps the order of the denoiser's modules, `origin` maps what it was made from
    (model, layer table, sensitivity table, seed) to digests.
    """

    name: str
    layers: Mapping[str, LayerBits]
    budget: Budget | None = None
    solver: SolverFacts | None = None
    origin: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a plan without layers")
