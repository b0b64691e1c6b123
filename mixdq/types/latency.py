"""What layers cost in time: milliseconds at every pair of widths, measured on one machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mixdq.types.plan import BitPlan, LayerBits


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Milliseconds of one denoiser call for one picture, layer by layer.

    Attributes:
        layers: layer -> widths, such as "W4A8" -> milliseconds of all its runs in one call.
        rest: what lies between the layers (attention, norms), the same in every plan.
        machine: where it was measured.
        origin: what it was made from -> digest.
    """

    layers: Mapping[str, Mapping[str, float]]
    rest: float
    machine: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, times in self.layers.items():
            for bits, milliseconds in times.items():
                LayerBits.parse(bits)
                if not 0.0 <= milliseconds < float("inf"):
                    raise ValueError(f"{name}: {milliseconds} milliseconds at {bits}")
        if not 0.0 <= self.rest < float("inf"):
            raise ValueError(f"rest: {self.rest} milliseconds")

    def of(self, plan: BitPlan) -> float:
        """Return the milliseconds of a whole call under a plan; KeyError where a layer was not measured so."""
        return self.rest + sum(self.layers[name][str(bits)] for name, bits in plan.layers.items())
