"""Plans that need no program, and what any plan costs: mean bits and bytes, everything counted.

Bytes are those of the portable layout: packed codes row by row, and a float32 scale for each output channel and input
part, with an int32 zero point beside it where weights are asymmetric; 16 bits are two bytes an element. Biases are the
same in every plan and not counted.
"""

import math
from dataclasses import replace

from mixdq.errors import PlanError
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import FLOAT_BITS, BitPlan, LayerBits, Number

SCALE_BYTES = 4
ZERO_POINT_BYTES = 4


def uniform_plan(
    table: LayerTable,
    weight: int,
    activation: int,
    name: str | None = None,
    keep: tuple[str, ...] = (),
    number: Number = "int",
) -> BitPlan:
    """Return the plan that gives every layer the same bits, but those of `keep`, which stay in floating point.

    Of `number` "float" Linear layers have W8A8 float, and convolutions, which cannot, W8A8. Named "W4A8-uniform" where
    no name is given.
    """
    bits = LayerBits(weight=weight, activation=activation, number=number)
    of_kind = {"linear": bits, "conv2d": replace(bits, number="int")}
    kept = LayerBits(weight=FLOAT_BITS, activation=FLOAT_BITS)
    return BitPlan(
        name=name or f"{bits}-uniform",
        layers={layer.name: kept if layer.name in keep else of_kind[layer.op] for layer in table},
        origin={"model": table.digest},
    )


def mean_bits(plan: BitPlan, table: LayerTable) -> tuple[float, float]:
    """Return the mean bits of a weight element and of an input element; layers left in floating point count 16.

    Raises:
        PlanError: the plan and the table name different layers.
    """
    _same_layers(plan, table)
    weights = math.fsum(plan.layers[layer.name].weight * layer.weight_numel for layer in table)
    activations = math.fsum(plan.layers[layer.name].activation * layer.input_numel for layer in table)
    return (
        weights / sum(layer.weight_numel for layer in table),
        activations / sum(layer.input_numel for layer in table),
    )


def weight_bytes(plan: BitPlan, table: LayerTable, *, symmetric: bool = True) -> int:
    """Return the bytes of all weights under the plan, scales and zero points included; PlanError as `mean_bits`."""
    _same_layers(plan, table)
    return sum(
        layer_bytes(layer, bits.weight, symmetric=symmetric or bits.is_float)
        for layer in table
        for bits in (plan.layers[layer.name],)
    )


def layer_bytes(layer: LayerSpec, num_bits: int, *, symmetric: bool = True) -> int:
    """Return the bytes of one layer's weight at `num_bits`, scales and zero points included."""
    if num_bits == FLOAT_BITS:
        return layer.weight_numel * 2
    rows, channels, *kernel = layer.weight_shape
    parts = layer.input_splits or (channels,)
    # A row of each part is packed by itself, into whole bytes.
    row_bytes = sum(-(-part * math.prod(kernel) * num_bits // 8) for part in parts)
    part_bytes = SCALE_BYTES if symmetric else SCALE_BYTES + ZERO_POINT_BYTES
    return rows * (row_bytes + part_bytes * len(parts))


def _same_layers(plan: BitPlan, table: LayerTable) -> None:
    names = {layer.name for layer in table}
    wrong = [f"{name}: in the plan, not in the model" for name in plan.layers if name not in names]
    wrong += [f"{name}: in the model, not in the plan" for name in sorted(names - plan.layers.keys())]
    if wrong:
        raise PlanError(
            f"plan {plan.name!r} is for another model than {table.model!r}: {len(wrong)} layers differ, "
            f"the first {wrong[0]}. Allocate again for this model.",
            disagreements=wrong,
        )
