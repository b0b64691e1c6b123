"""One program for everything: weights and inputs of both groups together, under any budgets at once, exactly.

minimise the picture's predicted loss, the sum of every layer's losses, over the widths of its weight and its input,
within mean weight bits, mean input bits, bytes and milliseconds, as far as the budget names them. An input of 16 bits
is a candidate like any other: which layers are protected is the program's decision. So is a weight of 16 bits within
milliseconds, for not every layer is faster in integers. Beyond arXiv 2405.17873, which solves four programs and sweeps
the share of each group.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mixdq.allocation.choices import Chosen, Limit, PairLosses, choose_options
from mixdq.allocation.error_model import predicted_error
from mixdq.allocation.objective import METRIC_OF, layer_scores
from mixdq.allocation.plans import layer_bytes, mean_bits, weight_bytes
from mixdq.errors import ConfigError, PlanError
from mixdq.types.latency import LatencyTable
from mixdq.types.layers import Group, LayerSpec, LayerTable
from mixdq.types.plan import FLOAT_BITS, BitPlan, Budget, LayerBits, SolverFacts
from mixdq.types.scores import ErrorModel, Role, SensitivityTable

log = logging.getLogger(__name__)

FLOAT = LayerBits(weight=FLOAT_BITS, activation=FLOAT_BITS)

LATENCY_GAP = 1e-4
"""Proven share of the losses by which a plan under several budgets at once may miss the best."""

Unit = tuple[str, str]
"""A layer and what is chosen of it: "weight", "activation", or "both" where they cannot be chosen apart."""

Option = int | LayerBits
"""A width, or those of weight and input."""

LayerPairs = Mapping[tuple[str, str], Mapping[tuple[Option, Option], float]]
"""(layer, layer) -> (its bits, the other's bits) -> what both together lose more, or less, than each alone."""


@dataclass(frozen=True, kw_only=True)
class JointProgram:
    """The program of a model under a budget: widths, losses of every unit's options, limits by setting, pair terms."""

    table: LayerTable
    budget: Budget
    widths: Mapping[str, Sequence[LayerBits]]
    losses: Mapping[Unit, Mapping[Option, float]]
    limits: Mapping[str, Limit[Unit, Option]]
    pairs: PairLosses[Unit, Option]
    objective: str
    symmetric: bool
    latency: LatencyTable | None

    def solve(self, *, gap: float | None = None) -> Chosen[Unit, Option]:
        """Return the best options, exactly, or within LATENCY_GAP where budgets cross; errors as `choose_options`."""
        if gap is None:
            gap = LATENCY_GAP if "latency_ms" in self.limits or self.pairs else 0.0
        return choose_options(self.losses, list(self.limits.values()), self.pairs, gap=gap)

    def plan(self, chosen: Chosen[Unit, Option], name: str, origin: Mapping[str, str]) -> BitPlan:
        """Return a solution as a plan, with what it spends and what error it predicts."""
        bits = {layer.name: FLOAT for layer in self.table}
        for (layer, role), option in chosen.options.items():
            if isinstance(option, LayerBits):
                bits[layer] = option
            else:
                known = bits[layer]
                bits[layer] = replace(known, weight=option) if role == "weight" else replace(known, activation=option)
        bare = BitPlan(name=name, layers=bits)
        weight, activation = mean_bits(bare, self.table)
        values = {
            "loss": chosen.loss,
            "predicted_error": predicted_error(chosen.loss),
            "weight_mean_bits": weight,
            "activation_mean_bits": activation,
            "weight_bytes": float(weight_bytes(bare, self.table, symmetric=self.symmetric)),
        }
        if self.latency is not None:
            values["latency_ms"] = self.latency.of(bare)
        if self.pairs:
            values["pairs"] = float(len(self.pairs))
        facts = SolverFacts(
            solver="joint program, HiGHS, scipy.optimize.milp", objective=self.objective, values=values, gap=chosen.gap
        )
        return replace(bare, budget=self.budget, solver=facts, origin={"model": self.table.digest, **origin})


def allocate(
    table: LayerTable,
    sensitivity: SensitivityTable,
    budget: Budget,
    *,
    error_model: ErrorModel | None = None,
    latency: LatencyTable | None = None,
    metric_of: Mapping[Group, str] = METRIC_OF,
    pairs: LayerPairs | None = None,
    gap: float | None = None,
    symmetric: bool = True,
    name: str = "plan-01",
    origin: Mapping[str, str] | None = None,
) -> BitPlan:
    """Return the plan with the least loss within every budget; the same inputs give the same plan.

    Losses are "linear", or, with an `error_model`, "calibrated" by it. `pairs` makes the objective quadratic.

    Raises:
        InfeasibleBudgetError: a budget is out of reach, alone or beside the others.
        PlanError: scores or milliseconds are missing, or are of another model.
        ConfigError: `keep` names a layer that the model does not have, or milliseconds are asked for without a table.
    """
    program = build_program(
        table,
        sensitivity,
        budget,
        error_model=error_model,
        latency=latency,
        metric_of=metric_of,
        pairs=pairs,
        symmetric=symmetric,
    )
    return program.plan(program.solve(gap=gap), name, origin or {})


def build_program(
    table: LayerTable,
    sensitivity: SensitivityTable,
    budget: Budget,
    *,
    error_model: ErrorModel | None = None,
    latency: LatencyTable | None = None,
    metric_of: Mapping[Group, str] = METRIC_OF,
    pairs: LayerPairs | None = None,
    symmetric: bool = True,
) -> JointProgram:
    """Return the program; arguments and errors as of `allocate`, but for budgets out of reach."""
    unknown = sorted(set(budget.keep) - {layer.name for layer in table})
    if unknown:
        raise ConfigError(f"keep: {table.model!r} has no layer {unknown[0]!r} ({len(unknown)} such names)")
    widths = _widths(table, budget, latency)
    losses = {
        role: _losses(table, sensitivity, role, widths, metric_of, error_model) for role in ("weight", "activation")
    }
    whole = budget.latency_ms is not None or bool(pairs) or not all(_is_product(bits) for bits in widths.values())
    units: dict[Unit, dict[Option, float]] = {}
    for layer in table:
        weight, activation = losses["weight"][layer.name], losses["activation"][layer.name]
        if whole:
            units[layer.name, "both"] = {
                bits: weight[bits.weight] + activation[bits.activation] for bits in widths[layer.name]
            }
        else:
            # The widest first: of equal options the first is taken.
            units[layer.name, "weight"] = {bits: weight[bits] for bits in sorted(weight, reverse=True)}
            units[layer.name, "activation"] = {bits: activation[bits] for bits in sorted(activation, reverse=True)}
    return JointProgram(
        table=table,
        budget=budget,
        widths=widths,
        losses=units,
        limits=_limits(table, budget, units, latency, symmetric),
        pairs={((a, "both"), (b, "both")): terms for (a, b), terms in (pairs or {}).items()},
        objective="linear" if error_model is None else "calibrated",
        symmetric=symmetric,
        latency=latency,
    )


def candidates(layer: LayerSpec, budget: Budget) -> list[LayerBits]:
    """Return what a layer can have, widest first; no kernel quantizes the input of a floating-point weight.

    Within milliseconds every layer can stay in floating point.
    """
    if layer.name in budget.keep:
        return [FLOAT]
    weights: set[int] = set(budget.weight_choices[layer.group])
    activations = {*budget.activation_choices[layer.group], FLOAT_BITS}
    if budget.latency_ms is None:
        # Without a limit nothing is gained by fewer bits.
        if budget.weight_bits is not None and budget.weight_bits >= FLOAT_BITS:
            weights = {FLOAT_BITS}
        if budget.activation_bits >= FLOAT_BITS:
            activations = {FLOAT_BITS}
    else:
        weights.add(FLOAT_BITS)
    pairs = {(w, a) for w in weights for a in activations if w < FLOAT_BITS or a == FLOAT_BITS}
    return [LayerBits(weight=w, activation=a) for w, a in sorted(pairs, reverse=True)]


def _widths(table: LayerTable, budget: Budget, latency: LatencyTable | None) -> dict[str, list[LayerBits]]:
    """Return the candidates of every layer; floating point only by choice, or where its time is known."""
    widths = {layer.name: candidates(layer, budget) for layer in table}
    if budget.latency_ms is None or latency is None:
        return widths
    chosen = {layer.name for layer in table if FLOAT_BITS in budget.weight_choices[layer.group]} | {*budget.keep}
    unknown = {name for name in widths.keys() - chosen if str(FLOAT) not in latency.layers.get(name, {})}
    if unknown:
        log.warning(
            "%d layers have no milliseconds at %s, and cannot stay in 16 bits for being faster so: remove latency.json "
            "and measure again with `mixdq benchmark RUN --layers`",
            len(unknown),
            FLOAT,
        )
    return {name: [bits for bits in pairs if bits != FLOAT or name not in unknown] for name, pairs in widths.items()}


def _is_product(widths: Sequence[LayerBits]) -> bool:
    return len(widths) == len({bits.weight for bits in widths}) * len({bits.activation for bits in widths})


def _losses(
    table: LayerTable,
    sensitivity: SensitivityTable,
    role: Role,
    widths: Mapping[str, Sequence[LayerBits]],
    metric_of: Mapping[Group, str],
    error_model: ErrorModel | None,
) -> dict[str, dict[int, float]]:
    """Return layer -> bits -> loss: linear, times what the error model says of the layer's group and role."""
    wanted = {name: sorted({getattr(bits, role) for bits in pairs}) for name, pairs in widths.items()}
    scores = layer_scores(table, sensitivity, role, wanted, metric_of, "linear", lone_widths=False)
    times = {layer.name: 1.0 if error_model is None else error_model.weights[layer.group][role] for layer in table}
    return {name: {bits: -score * times[name] for bits, score in choices.items()} for name, choices in scores.items()}


def _limits(
    table: LayerTable,
    budget: Budget,
    units: Mapping[Unit, Mapping[Option, float]],
    latency: LatencyTable | None,
    symmetric: bool,
) -> dict[str, Limit[Unit, Option]]:
    """Return the limits that the budget names, in the order bits, bytes, input bits, milliseconds."""
    layers = {layer.name: layer for layer in table}

    def limit(name: str, most: float, unit: float, role: str, cost: Callable[[LayerSpec, Option], float]) -> None:
        costs = {
            key: {option: cost(layers[key[0]], option) for option in options}
            for key, options in units.items()
            if key[1] in (role, "both")
        }
        limits[name] = Limit(name=name, costs=costs, most=most, unit=unit)

    def weight(option: Option) -> int:
        return option.weight if isinstance(option, LayerBits) else option

    def activation(option: Option) -> int:
        return option.activation if isinstance(option, LayerBits) else option

    limits: dict[str, Limit[Unit, Option]] = {}
    if budget.weight_bits is not None and budget.weight_bits < FLOAT_BITS:
        size = float(sum(layer.weight_numel for layer in table))
        limit("weight_bits", budget.weight_bits * size, size, "weight", lambda x, o: x.weight_numel * weight(o))
    if budget.weight_bytes is not None:
        most = float(budget.weight_bytes)
        limit("weight_bytes", most, 1.0, "weight", lambda x, o: layer_bytes(x, weight(o), symmetric=symmetric))
    if budget.activation_bits < FLOAT_BITS:
        size = float(sum(layer.input_numel for layer in table))
        most = budget.activation_bits * size
        limit("activation_bits", most, size, "activation", lambda x, o: x.input_numel * activation(o))
    if budget.latency_ms is not None:
        times = _times(table, units, latency)
        # The rest is the same in every plan; it is paid beside the first layer.
        first = table.layers[0].name
        rest = {first: times.rest}
        limit(
            "latency_ms",
            budget.latency_ms,
            1.0,
            "both",
            lambda x, o: times.layers[x.name][str(o)] + rest.get(x.name, 0.0),
        )
    return limits


def _times(
    table: LayerTable, units: Mapping[Unit, Mapping[Option, float]], latency: LatencyTable | None
) -> LatencyTable:
    """Return the table of milliseconds; PlanError where it lacks a layer or a width of one."""
    if latency is None:
        raise ConfigError("latency_ms: nothing has been measured; `mixdq benchmark RUN --layers` measures it")
    wrong = [
        f"{name}: no milliseconds at {option}"
        for (name, _), options in units.items()
        for option in options
        if str(option) not in latency.layers.get(name, {})
    ]
    if wrong:
        raise PlanError(
            f"the latency table does not fit {table.model!r}: {len(wrong)} disagreements, the first {wrong[0]}. "
            "Measure again with `mixdq benchmark RUN --layers`.",
            disagreements=wrong,
        )
    return latency
