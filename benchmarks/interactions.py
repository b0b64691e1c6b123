"""What layers that interact add to losses, for `benchmarks.allocation`: the pairs that matter, or all of a sketch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixdq.allocation import joint
from mixdq.allocation.pairs import find_pairs
from mixdq.config import RunConfig
from mixdq.store.sketch_file import read_sketch
from mixdq.types.plan import BitPlan, Budget
from mixdq.workflow import steps
from mixdq.workflow.planning import SKETCH
from mixdq.workflow.session import Session

TOLERANCE = 1e-3
"""Never reached: as many vectors as there can be."""
GAP = 1e-3

Floats = NDArray[np.float64]


def sketched(config: RunConfig) -> RunConfig:
    """Return the settings with sensitivities that are sketched as well as can be."""
    values = config.sensitivity.model_copy(update={"method": "hybrid", "tolerance": TOLERANCE})
    return config.model_copy(update={"sensitivity": values})


def strongest(session: Session, budget: Budget, count: int) -> joint.LayerPairs:
    """Return the terms of at most so many pairs of layers, found in the sketch of the run."""
    sketch = read_sketch(session.paths.root / SKETCH)
    program = joint.build_program(steps.inspect(session), steps.measure(session), budget)
    return find_pairs(program, sketch.columns, sketch.products(), count)


def of_pairs(pairs: joint.LayerPairs, plans: Sequence[BitPlan]) -> Floats:
    """Return what the pairs add to the loss of each plan."""
    return np.array(
        [sum(terms[plan.layers[a], plan.layers[b]] for (a, b), terms in pairs.items()) for plan in plans],
        dtype=np.float64,
    )


def of_all(session: Session, plans: Sequence[BitPlan]) -> Floats:
    """Return what all pairs of the sketch add to the loss of each plan, chance and all."""
    sketch = read_sketch(session.paths.root / SKETCH)
    out = np.zeros(len(plans))
    for metric, products in sketch.products().items():
        for index, plan in enumerate(plans):
            taken = [bits == getattr(plan.layers[name], role) for name, role, bits in sketch.columns[metric]]
            mine = products[:, :, taken]
            out[index] += (np.square(mine.sum(axis=2)) - np.square(mine).sum(axis=2)).mean()
    return out
