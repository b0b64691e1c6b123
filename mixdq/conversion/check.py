"""Whether a plan, a layer table, a calibration record and a denoiser belong together; every disagreement at once."""

from collections.abc import Iterable

import torch
from torch import nn

from mixdq.errors import NonFiniteError, PlanError
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import FLOAT_BITS, Activations, BitPlan, LayerBits, is_dynamic
from mixdq.types.tensors import CalibrationRecord

SHOWN = 8
"""How many disagreements a message spells out; the error carries all of them."""

FLOAT = LayerBits(weight=FLOAT_BITS, activation=FLOAT_BITS)


def check_plan(
    plan: BitPlan, table: LayerTable, record: CalibrationRecord, *, activations: Activations = "static"
) -> None:
    """Return if a plan can be carried out with what calibration learned; "dynamic" activations need no ranges.

    Raises:
        PlanError: layers are missing or unknown, a width cannot be run, a range or a BOS row is missing; all are named.
    """
    known = {spec.name for spec in table}
    complaints = [f"{name}: the plan says nothing of it" for name in known - plan.layers.keys()]
    complaints += [f"{name}: the model has no such layer" for name in plan.layers.keys() - known]
    for spec in table:
        if spec.name in plan.layers:
            complaints += _layer_complaints(spec, plan.layers[spec.name], record, is_dynamic(activations))
    if complaints:
        raise plan_error(f"plan {plan.name!r} does not fit {table.model}", complaints)


def check_denoiser(denoiser: nn.Module, plan: BitPlan, table: LayerTable) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the modules that the plan quantizes, by name, in the table's order.

    Raises:
        PlanError: the denoiser is not the one of the table, or is quantized already; every layer is named.
        NonFiniteError: a weight holds NaN or infinity; the first is named.
    """
    modules = dict(denoiser.named_modules())
    complaints: list[str] = []
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for spec in table:
        module = modules.get(spec.name)
        if plan.layers[spec.name] == FLOAT:
            continue
        expected = nn.Linear if spec.op == "linear" else nn.Conv2d
        if module is None:
            complaints.append(f"{spec.name}: the denoiser has no such layer")
        elif type(module) is not expected:
            complaints.append(f"{spec.name}: expected a float {expected.__name__}, found {type(module).__name__}")
        elif tuple(module.weight.shape) != spec.weight_shape:
            complaints.append(f"{spec.name}: weight {tuple(module.weight.shape)}, expected {spec.weight_shape}")
        else:
            found[spec.name] = module
    if complaints:
        raise plan_error(f"the denoiser is not the one that {table.model}'s layer table describes", complaints)
    for name, layer in found.items():
        _check_finite(name, layer.weight)
    return found


def plan_error(what: str, complaints: Iterable[str]) -> PlanError:
    """Return the error that carries all complaints, in order, and spells out the first few."""
    every = sorted(complaints)
    shown = "\n".join(f"  {complaint}" for complaint in every[:SHOWN])
    more = f"\n  and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return PlanError(f"{what}; {len(every)} disagreements:\n{shown}{more}", disagreements=every)


def _layer_complaints(spec: LayerSpec, bits: LayerBits, record: CalibrationRecord, dynamic: bool) -> list[str]:
    if bits == FLOAT:
        return []
    if bits.weight == FLOAT_BITS:
        return [f"{spec.name}: {bits} quantizes the input of a floating-point weight, which no kernel runs; use W16A16"]
    if bits.is_float and spec.op != "linear":
        return [f"{spec.name}: {bits} is for Linear layers; a Conv2d takes W8A8"]
    complaints = []
    if bits.activation != FLOAT_BITS and not dynamic:
        parts, ranges = max(1, len(spec.input_splits)), len(record.ranges.get(spec.name, ()))
        if ranges != parts:
            complaints.append(f"{spec.name}: {bits} needs {parts} calibrated range(s), the record has {ranges}")
    if spec.bos:
        complaints += _bos_complaints(spec, record)
    return complaints


def _bos_complaints(spec: LayerSpec, record: CalibrationRecord) -> list[str]:
    output = record.bos_outputs.get(spec.name)
    if record.bos_input is None or output is None:
        return [f"{spec.name}: reads the text embedding, and the record holds no BOS row for it; calibrate again"]
    complaints = []
    for what, tensor, features in (
        ("state", record.bos_input, spec.weight_shape[1]),
        ("output", output, spec.weight_shape[0]),
    ):
        if tuple(tensor.shape) != (features,):
            complaints.append(f"{spec.name}: BOS {what} {tuple(tensor.shape)}, expected ({features},)")
        elif not bool(torch.isfinite(tensor).all()):
            complaints.append(f"{spec.name}: the BOS {what} holds NaN or infinity")
    return complaints


def _check_finite(name: str, weight: torch.Tensor) -> None:
    # NaN is both the least and the greatest; `isfinite` of every weight would need as much memory as the weights.
    if not bool(torch.isfinite(torch.stack(torch.aminmax(weight.detach()))).all()):
        raise NonFiniteError(f"{name}: its weight holds NaN or infinity; mend the model first.", where=name)
