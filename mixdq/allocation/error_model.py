"""From single layers to a whole picture: weights that make the sum of all losses foretell a plan's measured error.

e / (1 - e) = sum over groups and roles of weight * (sum of the losses of its layers),   e = 1 - SSIM

The errors of layers add up as noise does while they are small, and SSIM has an end where they are not. A loss of a
content layer is 1 - SSIM itself, so its weight is near 1; what the noise power of a quality layer costs in pictures
depends on the model. The weights are found from whole plans whose pictures were compared; with them no share of
content against quality needs to be swept (beyond arXiv 2405.17873).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr

from mixdq.allocation.highs import Floats
from mixdq.allocation.objective import METRIC_OF, layer_scores
from mixdq.types.layers import GROUPS, Group, LayerSpec, LayerTable
from mixdq.types.plan import FLOAT_BITS, BitPlan, Budget, LayerBits
from mixdq.types.scores import ROLES, ErrorModel, Role, SensitivityTable

TERMS: tuple[tuple[Group, Role], ...] = tuple((group, role) for group in GROUPS for role in ROLES)

LEAST_WEIGHT = 0.1
"""No group and no role is free, whatever a handful of plans says."""

_LEAST_ERROR, _GREATEST_ERROR = 1e-4, 0.9
_FOLDS = 4


def predicted_error(loss: float) -> float:
    """Return 1 - SSIM of a plan's pictures as its weighted losses foretell it."""
    return max(loss, 0.0) / (1.0 + max(loss, 0.0))


def loss_sums(
    table: LayerTable,
    sensitivity: SensitivityTable,
    plans: Sequence[BitPlan],
    metric_of: Mapping[Group, str] = METRIC_OF,
) -> Floats:
    """Return each plan's sum of linear losses by group and role, [plans, TERMS]; PlanError where scores are missing."""
    sums = np.zeros((len(plans), len(TERMS)))
    for role in ROLES:
        widths = {layer.name: sorted({getattr(plan.layers[layer.name], role) for plan in plans}) for layer in table}
        scores = layer_scores(table, sensitivity, role, widths, metric_of, "linear", lone_widths=True)
        for index, plan in enumerate(plans):
            for layer in table:
                term = TERMS.index((layer.group, role))
                sums[index, term] -= scores[layer.name][getattr(plan.layers[layer.name], role)]
    return sums


def fit_error_model(sums: Floats, errors: Sequence[float]) -> ErrorModel:
    """Return the weights for which `sums` [plans, TERMS] best foretell `errors` (1 - SSIM), each error by its share.

    Weights that the plans say nothing of stay at 1, as linear losses have them. The correlation is that of plans which
    were left out, a quarter at a time.
    """
    measured = np.clip(np.array(errors, dtype=np.float64), _LEAST_ERROR, _GREATEST_ERROR)
    targets = measured / (1.0 - measured)
    foretold = np.zeros(len(targets))
    for fold in range(_FOLDS):
        left_out = np.arange(len(targets)) % _FOLDS == fold
        foretold[left_out] = sums[left_out] @ _weights(sums[~left_out], targets[~left_out])
    correlation = float(spearmanr(foretold, measured).statistic) if len(set(foretold)) > 1 < len(set(measured)) else 0.0
    weights = _weights(sums, targets)
    return ErrorModel(
        weights={group: {role: float(weights[TERMS.index((group, role))]) for role in ROLES} for group in GROUPS},
        plans=len(errors),
        correlation=correlation,
    )


def random_plans(
    table: LayerTable, sensitivity: SensitivityTable, budget: Budget, count: int, seed: int
) -> list[BitPlan]:
    """Return plans to fit on, "fit-001" and on, of all budgets within the candidate widths; budgets do not count.

    Each group and role has a price of a bit, from where every layer is narrow to where all are wide; layers take what
    is best at that price for them, or, in most plans, for losses that were disturbed.
    """
    rng = np.random.default_rng(seed)
    choices = {
        "weight": budget.weight_choices,
        "activation": {group: (*budget.activation_choices[group], FLOAT_BITS) for group in GROUPS},
    }
    losses = {}
    for role in ROLES:
        widths = {layer.name: sorted(set(choices[role][layer.group])) for layer in table}
        losses[role] = layer_scores(table, sensitivity, role, widths, METRIC_OF, "linear", lone_widths=False)
    plans = []
    for number in range(1, count + 1):
        bits = {layer.name: {"weight": FLOAT_BITS, "activation": FLOAT_BITS} for layer in table}
        for group, role in TERMS:
            members = [layer for layer in table if layer.group == group and layer.name not in budget.keep]
            position, spread = rng.uniform(), rng.choice([0.0, 0.5, 1.0])
            disturbed = {
                layer.name: {b: -score * float(factor) for b, score in losses[role][layer.name].items()}
                for layer, factor in zip(members, np.exp(spread * rng.normal(size=len(members))), strict=True)
            }
            for name, width in _at_a_price(members, role, disturbed, position).items():
                bits[name][role] = width
        plans.append(
            BitPlan(
                name=f"fit-{number:03d}",
                layers={
                    name: LayerBits(
                        weight=both["weight"],
                        activation=both["activation"] if both["weight"] < FLOAT_BITS else FLOAT_BITS,
                    )
                    for name, both in bits.items()
                },
                origin={"model": table.digest},
            )
        )
    return plans


def _at_a_price(
    layers: Sequence[LayerSpec], role: Role, losses: Mapping[str, Mapping[int, float]], position: float
) -> dict[str, int]:
    """Return the best widths at a price of a bit; `position` 0..1 is its place among what layers gain by one."""
    sizes = {layer.name: layer.weight_numel if role == "weight" else layer.input_numel for layer in layers}
    paid = []
    for layer in layers:
        own = losses[layer.name]
        narrow, wide = min(own), max(own)
        if wide > narrow:
            paid.append((own[narrow] - own[wide]) / (sizes[layer.name] * (wide - narrow)))
    price = max(float(np.quantile(paid, position)), 0.0) if paid else 0.0
    return {
        layer.name: min(
            losses[layer.name], key=lambda bits: (losses[layer.name][bits] + price * sizes[layer.name] * bits, -bits)
        )
        for layer in layers
    }


def _weights(sums: Floats, targets: Floats) -> Floats:
    # Relative errors, so that good plans count as much as bad ones; and one more row a weight, which says 1.
    rows = np.vstack([sums / targets[:, None], np.eye(len(TERMS))])
    found, _ = nnls(rows, np.ones(len(rows)))
    return np.maximum(found, LEAST_WEIGHT)
