"""Which layers interact, and by how much: pair terms of the joint program, from the vectors of a sketch.

Two errors together lose |J dW_i + J dW_j|^2 = l_i + l_j + 2 <J dW_i, J dW_j>, and with the signed products
p = <v, J dW> of random v the mean of 2 p_i p_j is an unbiased estimate of the last term, to first order. Its noise is
about 2 sqrt(l_i l_j / n) for n products, and there are hundreds of thousands of pairs: those are taken whose term is
not chance, at a rate of false discoveries (Benjamini and Hochberg, 1995), and large enough to matter to a plan.

Only layers of one group are compared, for the forms of two metrics have no product.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from mixdq.allocation.highs import Floats
from mixdq.allocation.joint import JointProgram, LayerPairs, Option
from mixdq.allocation.objective import METRIC_OF
from mixdq.types.plan import LayerBits
from mixdq.types.scores import ErrorModel, Role

FALSE_DISCOVERIES = 0.05
"""Share of the terms taken for real that may be chance."""
LEAST_SHARE = 1e-3
"""Part of a plan's loss below which a term is not worth its columns."""

Column = tuple[str, Role, int]
"""A layer, a role and a width."""


def find_pairs(
    program: JointProgram,
    columns: Mapping[str, Sequence[Column]],
    products: Mapping[str, Floats],
    count: int,
    *,
    error_model: ErrorModel | None = None,
) -> LayerPairs:
    """Return the terms of the `count` pairs of layers at most that matter most to `program`, which has none yet.

    `columns` and `products` are those of a sketch by metric, [vectors, samples, columns]. A pair matters by its terms
    at the widths of the best plan without pairs, or where one of the two is wider or a step narrower. With an
    `error_model` terms are weighed as losses are.

    Raises:
        InfeasibleBudgetError: as `JointProgram.solve`.
    """
    chosen = program.solve()
    plan = program.plan(chosen, "", {}).layers
    layers = {layer.name: layer for layer in program.table}
    widths = program.widths
    names: list[Column] = []
    firsts, seconds, terms, chances = [], [], [], []
    for metric, of_metric in columns.items():
        kept = [
            index
            for index, (name, role, bits) in enumerate(of_metric)
            if name in layers
            and METRIC_OF[layers[name].group] == metric
            and bits in {getattr(one, role) for one in widths[name]}
        ]
        if not kept:
            # All layers of the group keep their bits.
            continue
        mine = [of_metric[index] for index in kept]
        weights = [1.0 if error_model is None else error_model.weights[layers[n].group][role] for n, role, _ in mine]
        taken = products[metric][:, :, kept] * np.sqrt(weights)
        if metric == "sqnr":
            # The loss that a mean of decibels stands for is the geometric mean of those of the samples.
            power = np.maximum(np.square(taken).mean(axis=0), np.finfo(np.float64).tiny)
            taken *= np.sqrt(np.exp(np.log(power).mean(axis=0)) / power.mean(axis=0))
        term, chance = estimate_terms(taken.reshape(-1, len(kept)))
        owners = np.array([name for name, _, _ in mine])
        first, second = np.nonzero(np.triu(owners[:, None] != owners[None, :]))
        firsts.append(first + len(names))
        seconds.append(second + len(names))
        terms.append(term[first, second])
        chances.append(chance[first, second])
        names += mine
    if not names:
        return {}
    real = np.flatnonzero(discoveries(np.concatenate(chances), FALSE_DISCOVERIES))
    places = zip(np.concatenate(firsts)[real], np.concatenate(seconds)[real], strict=True)
    values = np.concatenate(terms)[real].tolist()
    found = {(names[a], names[b]): value for (a, b), value in zip(places, values, strict=True)}
    size: dict[tuple[str, str], float] = {}
    for (a, b), value in found.items():
        if _narrower(plan, widths, a) + _narrower(plan, widths, b) <= 1:
            size[a[0], b[0]] = max(size.get((a[0], b[0]), 0.0), abs(value))
    matter = [both for both in size if size[both] >= LEAST_SHARE * chosen.loss]
    strongest = sorted(matter, key=lambda both: (-size[both], both))[:count]
    return {(a, b): _of_layers(a, b, widths, found) for a, b in strongest}


def estimate_terms(products: Floats) -> tuple[Floats, Floats]:
    """Return of every two columns of [n, columns] twice the mean product, and the chance of it if there were nothing.

    The mean is held against the root mean square of the products, whose tails are no heavier than a normal variable's
    however heavy theirs are.
    """
    mean = products.T @ products / len(products)
    power = np.square(products).T @ np.square(products) / len(products)
    # Nothing may come of a trial that no gradient reaches.
    deviations = np.abs(mean) * np.sqrt(len(products) / np.where(power > 0.0, power, 1.0))
    return 2.0 * mean, erfc(deviations / np.sqrt(2.0))


def discoveries(chances: Floats, rate: float) -> NDArray[np.bool_]:
    """Return which of these chances are so small that of all such no more than `rate` are to be expected by chance."""
    order = np.sort(chances)
    below = np.flatnonzero(order <= rate * np.arange(1, len(order) + 1) / max(len(order), 1))
    return chances <= (order[below[-1]] if len(below) else -1.0)


def _narrower(plan: Mapping[str, LayerBits], widths: Mapping[str, Sequence[LayerBits]], column: Column) -> int:
    """Return by how many steps a width is narrower than the plan's."""
    name, role, bits = column
    return len({getattr(one, role) for one in widths[name] if bits <= getattr(one, role) < getattr(plan[name], role)})


def _of_layers(
    a: str, b: str, widths: Mapping[str, Sequence[LayerBits]], terms: Mapping[tuple[Column, Column], float]
) -> Mapping[tuple[Option, Option], float]:
    """Return the terms of two layers at every pair of their widths, weight and input together."""

    def parts(layer: str, bits: LayerBits) -> tuple[Column, Column]:
        return (layer, "weight", bits.weight), (layer, "activation", bits.activation)

    return {
        (one, other): sum(terms.get((x, y), 0.0) for x in parts(a, one) for y in parts(b, other))
        for one in widths[a]
        for other in widths[b]
    }
