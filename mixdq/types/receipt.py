"""What conversion did, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mixdq.types.plan import LayerBits


@dataclass(frozen=True, kw_only=True)
class LayerReceipt:
    """One layer: its bits, the backend that runs it (None: left in floating point), and every refusal on the way.

    `bytes_before` counts its weight and bias at 16 bits; `bytes_after` what is kept now, scales and BOS rows included.
    """

    layer: str
    bits: LayerBits
    backend: str | None
    refusals: Mapping[str, tuple[str, ...]]
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """All layers of a conversion, the name of the plan it followed, and facts of the machine that carried it out.

    `machine` has what `mixdq doctor` prints, name -> value; empty where nobody asked.
    """

    plan: str
    layers: tuple[LayerReceipt, ...]
    machine: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes_before(self) -> int:
        """Bytes of the layers before, at 16 bits."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Bytes of the layers now."""
        return sum(layer.bytes_after for layer in self.layers)
