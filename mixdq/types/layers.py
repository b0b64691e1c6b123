"""What a denoiser is made of: one `LayerSpec` for every Linear and Conv2d."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Op = Literal["linear", "conv2d"]
Group = Literal["content", "quality"]

GROUPS: tuple[Group, ...] = ("content", "quality")


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One quantizable layer.

    Attributes:
        name: its dotted path inside the denoiser.
        op: "linear" or "conv2d".
        group: "content" (what the picture shows) or "quality" (how clean it is); arXiv 2405.17873, metric decoupling.
        weight_shape: [out, in] or [out, in / groups, height, width].
        input_numel: elements of its input for one picture and one denoiser call.
        macs: multiply-accumulates for one picture and one denoiser call.
        bos: True where it reads the text embedding, whose first token is set aside.
        input_splits: channels of each part of a joined input, quantized apart; empty where the input is one whole.
    """

    name: str
    op: Op
    group: Group
    weight_shape: tuple[int, ...]
    input_numel: int
    macs: int
    bos: bool = False
    input_splits: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        dims = {"linear": 2, "conv2d": 4}[self.op]
        if len(self.weight_shape) != dims or min(self.weight_shape) < 1:
            raise ValueError(f"{self.name}: a {self.op} weight has {dims} positive dimensions, not {self.weight_shape}")
        if self.input_numel < 1 or self.macs < 1:
            raise ValueError(f"{self.name}: input_numel and macs must be positive")
        if self.input_splits and sum(self.input_splits) != self.weight_shape[1]:
            raise ValueError(f"{self.name}: parts {self.input_splits} do not add up to {self.weight_shape[1]} channels")

    @property
    def weight_numel(self) -> int:
        """The number of weight elements."""
        return math.prod(self.weight_shape)


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """All quantizable layers of a denoiser, in the order of its modules.

    `model` is what the user named, `family` the model family that knows it, and `digest` identifies the weights.
    """

    model: str
    family: str
    digest: str
    layers: tuple[LayerSpec, ...]

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            raise ValueError("layer names repeat")

    def __iter__(self) -> Iterator[LayerSpec]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerSpec:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)
