"""The programs of a layer table: for weights or for activations, free layers by group, fixed layers paid in advance.

A problem has one part for each group, or a single part where both groups are judged by one metric (then their scores
add up, and no ratio between groups is needed). Solving is in `program`, sweeping the ratio in `sweep`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mixdq.allocation.plans import layer_bytes
from mixdq.errors import InfeasibleBudgetError
from mixdq.types.layers import GROUPS, Group, LayerSpec, LayerTable

Cost = Callable[[LayerSpec, int], float]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One program: `scores` and `costs` map layer -> bits -> number; `size` is what a mean is taken over."""

    scores: Mapping[str, Mapping[int, float]]
    costs: Mapping[str, Mapping[int, float]]
    size: float

    @property
    def least(self) -> float:
        """The cost with every layer at its cheapest width."""
        return sum(min(costs.values()) for costs in self.costs.values())

    @property
    def greatest(self) -> float:
        """The cost with every layer at its dearest width."""
        return sum(max(costs.values()) for costs in self.costs.values())


@dataclass(frozen=True, kw_only=True)
class Problem:
    """All programs of one role, and what they share.

    Attributes:
        parts: group -> program, without groups that have no free layer; a joint program is called "all".
        fixed: layers that have their bits already.
        limit: what the parts may cost together, the fixed layers being paid.
        size: what the mean over all layers, fixed ones too, is taken over.
        fixed_cost: what the fixed layers cost.
    """

    parts: Mapping[str, Part]
    fixed: Mapping[str, int]
    limit: float
    size: float
    fixed_cost: float


def weight_bits_cost(layer: LayerSpec, num_bits: int) -> float:
    """Return the bits of a weight."""
    return layer.weight_numel * num_bits


def weight_bytes_cost(layer: LayerSpec, num_bits: int, *, symmetric: bool = True) -> float:
    """Return the bytes of a weight with its scales, and its zero points where it is not symmetric."""
    return layer_bytes(layer, num_bits, symmetric=symmetric)


def activation_bits_cost(layer: LayerSpec, num_bits: int) -> float:
    """Return the bits of a layer's input for one picture."""
    return layer.input_numel * num_bits


def build_problem(
    table: LayerTable,
    scores: Mapping[str, Mapping[int, float]],
    fixed: Mapping[str, int],
    limit: float,
    cost: Cost,
    size: Callable[[LayerSpec], float],
    *,
    joint: bool,
) -> Problem:
    """Return the programs for the layers that are not `fixed`; `limit` is for all layers together."""
    free = [layer for layer in table if layer.name not in fixed]
    labels = ["all"] if joint else list(GROUPS)
    parts: dict[str, Part] = {}
    for label in labels:
        members = [layer for layer in free if joint or layer.group == label]
        if members:
            parts[label] = Part(
                scores={layer.name: scores[layer.name] for layer in members},
                costs={layer.name: {bits: cost(layer, bits) for bits in scores[layer.name]} for layer in members},
                size=sum(size(layer) for layer in members),
            )
    fixed_cost = sum(cost(layer, fixed[layer.name]) for layer in table if layer.name in fixed)
    return Problem(
        parts=parts,
        fixed=dict(fixed),
        limit=limit - fixed_cost,
        size=sum(size(layer) for layer in table),
        fixed_cost=fixed_cost,
    )


def check_feasible(problem: Problem, *, setting: str, per_size: bool, choices: Mapping[Group, tuple[int, ...]]) -> None:
    """Raise InfeasibleBudgetError, in the unit of the setting, where even the cheapest widths cost too much."""
    unit = problem.size if per_size else 1.0
    least = (problem.fixed_cost + sum(part.least for part in problem.parts.values())) / unit
    greatest = (problem.fixed_cost + sum(part.greatest for part in problem.parts.values())) / unit
    asked = (problem.fixed_cost + problem.limit) / unit
    if asked < least * (1 - 1e-9):
        number = ".4f" if per_size else ".0f"
        widths = ", ".join(f"{group} {list(bits)}" for group, bits in choices.items())
        raise InfeasibleBudgetError(
            f"{setting} = {asked:.10g} is out of reach: with {len(problem.fixed)} layers kept or protected at 16 bits "
            f"the choices ({widths}) give {least:{number}} to {greatest:{number}}. "
            "Raise the budget, offer smaller widths, or keep and protect fewer layers.",
            least=least,
            greatest=greatest,
        )
