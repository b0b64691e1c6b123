"""Whether a plan was made for an architecture, and plans fitted to it. Needs no model and no torch."""

from collections import Counter

from mixdq.allocation.plans import layer_bytes, weight_bytes
from mixdq.store.artifact import digest_of, digest_of_file, expect_origin
from mixdq.store.plan_file import read_plan
from mixdq.types.layers import LayerTable
from mixdq.types.plan import FLOAT_BITS, MAX_BITS, MIN_BITS, BitPlan, LayerBits
from mixdq.workflow.session import Session

_FLOAT = LayerBits(weight=FLOAT_BITS, activation=FLOAT_BITS)

ARCHITECTURE = "architecture"
"""The key of a plan's origin that holds the digest of the architecture it was made for."""

TRANSFERRED = "transfer"
"""The key of a plan's origin that holds the digest of transfer.json, where it was found for another model."""


def architecture_digest(table: LayerTable) -> str:
    """Return the digest of what fine-tunes of one model share: names, kinds and shapes of the layers."""
    return digest_of([[layer.name, layer.op, list(layer.weight_shape)] for layer in table])


def differences(plan: BitPlan, table: LayerTable, known: LayerTable | None = None) -> list[str]:
    """Return what keeps a plan from fitting the layers of `table`, one line a layer; empty where it fits.

    `known` are the layers that the plan was made for. Without them names are compared, and the digest of the
    architecture where the plan has one.
    """
    names = {layer.name for layer in table}
    found = [f"{name}: the model has no such layer" for name in plan.layers if name not in names]
    found += [f"{layer.name}: the plan says nothing of it" for layer in table if layer.name not in plan.layers]
    if known is not None:
        before = {layer.name: f"{layer.op} {list(layer.weight_shape)}" for layer in known}
        for layer in table:
            here = f"{layer.op} {list(layer.weight_shape)}"
            if layer.name in plan.layers and before.get(layer.name, here) != here:
                found.append(f"{layer.name}: {here}, but {before[layer.name]} in the model that the plan was made for")
    elif not found and plan.origin.get(ARCHITECTURE, architecture_digest(table)) != architecture_digest(table):
        found.append("layers of these names, but of other kinds or shapes than those that the plan was made for")
    return found


def fitted(plan: BitPlan, table: LayerTable) -> BitPlan:
    """Return the plan for exactly the layers of `table`: those it says nothing of are left in floating point."""
    layers = {layer.name: plan.layers.get(layer.name, _FLOAT) for layer in table}
    return BitPlan(name=plan.name, layers=layers, budget=plan.budget, solver=plan.solver, origin=plan.origin)


def uniform_like(plan: BitPlan, table: LayerTable, *, symmetric: bool = True) -> BitPlan:
    """Return the plain plan of no more weight bytes than `plan`: the same bits for every layer that it quantizes.

    What is left of the bytes gives the first layers one bit more. Every input has the width that most input elements
    have in `plan`; layers that it leaves in floating point stay there.
    """
    quantized = [layer for layer in table if plan.layers[layer.name].weight != FLOAT_BITS]
    if not quantized:
        return BitPlan(name="floating point", layers=plan.layers)
    inputs: Counter[int] = Counter()
    for layer in quantized:
        inputs[plan.layers[layer.name].activation] += layer.input_numel
    activation = inputs.most_common(1)[0][0]

    def uniform(width: int) -> dict[str, LayerBits]:
        bits = LayerBits(weight=width, activation=activation)
        return {**plan.layers, **{layer.name: bits for layer in quantized}}

    def cost(width: int) -> int:
        return weight_bytes(BitPlan(name="", layers=uniform(width)), table, symmetric=symmetric)

    budget = weight_bytes(plan, table, symmetric=symmetric)
    width = max((bits for bits in range(MIN_BITS, MAX_BITS + 1) if cost(bits) <= budget), default=MIN_BITS)
    layers, left = uniform(width), budget - cost(width)
    for layer in quantized if width < MAX_BITS else []:
        extra = layer_bytes(layer, width + 1, symmetric=symmetric) - layer_bytes(layer, width, symmetric=symmetric)
        if extra <= left:
            layers[layer.name], left = LayerBits(weight=width + 1, activation=activation), left - extra
    more = f" and W{width + 1}" if layers != uniform(width) else ""
    return BitPlan(name=f"uniform W{width}{more}, A{activation}", layers=layers)


def carried_plan(session: Session) -> BitPlan | None:
    """Return the run's plan if it was found for another model; StaleArtifactError where its check no longer holds."""
    path, calibration = session.paths.plan, session.paths.calibration
    if not path.exists():
        return None
    command = f"mixdq apply --plan PLAN {session.config.model.path} -o {session.paths.root}"
    with session.advising(path, f"mixdq choose {session.paths.root}"):
        plan = read_plan(path)
    if TRANSFERRED not in plan.origin:
        return None
    if calibration.exists():
        expect_origin(path, plan.origin, {"calibration": digest_of_file(calibration)}, command)
    return plan
