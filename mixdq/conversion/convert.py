"""The one function that changes a model for good: float layers out, quantized layers in, one after the other.

Nothing is touched before the whole plan is known to be possible. Afterwards each float weight is freed as soon as its
successor stands, so the float and the quantized model are never both in memory.
"""

import logging
from collections.abc import Mapping

import torch
from torch import nn

from mixdq.conversion.check import FLOAT, check_denoiser, check_plan, plan_error
from mixdq.errors import NoBackendError
from mixdq.quant.bos import BosRow
from mixdq.quant.qparams import activation_qparams
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.another_text import follow_text
from mixdq.runtime.backends.cpu import CpuBackend
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.between import use_cpu_kernels
from mixdq.runtime.blocks import fold_blocks
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.heap import HEAP
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.requests import kernel_requests
from mixdq.runtime.select import AUTO, select
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import Activations, BitPlan, LayerBits, is_dynamic
from mixdq.types.progress import Progress, no_progress
from mixdq.types.receipt import LayerReceipt, Receipt
from mixdq.types.tensors import CalibrationRecord

log = logging.getLogger(__name__)

FLOAT_BYTES = 2

Choice = tuple[str, Mapping[str, tuple[str, ...]]]


def convert(
    denoiser: nn.Module,
    plan: BitPlan,
    table: LayerTable,
    record: CalibrationRecord,
    *,
    backend: str = AUTO,
    symmetric: bool = True,
    rounding: str = "nearest",
    activations: Activations = "static",
    progress: Progress = no_progress,
) -> Receipt:
    """Quantize a denoiser in place and return what was done, layer by layer.

    Layers of W16A16 stay as they are. `backend` is "auto" or a name; `rounding` one of `mixdq.quant.rounding`. Where
    layers run on the CPU's kernels, so does the attention between them; the GPU's take in what stands around them.
    An exception from `progress` (Ctrl-C) leaves the denoiser half converted, for the float weights are gone.

    Raises, before anything is touched:
        PlanError: the plan, the table, the record and the denoiser disagree.
        NonFiniteError: a weight holds NaN or infinity.
        NoBackendError: nobody runs one of the layers; the first is named, and how many more there are.
        ConfigError: there is no such backend, or `activations` are neither static nor dynamic.
    """
    check_plan(plan, table, record, activations=activations)
    modules = check_denoiser(denoiser, plan, table)
    dynamic = is_dynamic(activations)
    layouts = {
        spec.name: _layout(spec, plan.layers[spec.name], symmetric, dynamic) for spec in table if spec.name in modules
    }
    choices = _choose(modules, layouts, backend)
    receipts = []
    for done, spec in enumerate(table, start=1):
        if spec.name in layouts:
            freed = modules[spec.name].weight.nbytes
            successor = _successor(modules.pop(spec.name), spec, layouts[spec.name], record, backend, rounding)
            _replace(denoiser, spec.name, successor)
            HEAP.freed(freed)
            receipts.append(_receipt(spec, layouts[spec.name].bits, successor, choices[spec.name]))
        else:
            receipts.append(_receipt(spec, FLOAT, denoiser.get_submodule(spec.name), None))
        log.debug("%s: %s", spec.name, receipts[-1].bits)
        progress(done, len(table), "conversion")
    HEAP.give_back()
    chosen = {name for names, _ in choices.values() for name in names.split(", ")}
    if CpuBackend.name in chosen:
        between = use_cpu_kernels(denoiser)
        log.info("attention and gates: %d on the CPU's own kernels", between)
    if CudaBackend.name in chosen:
        folded = fold_blocks(denoiser)
        log.info("norms, gates and residuals: those of %d blocks are folded into their layers", folded)
    follow_text(denoiser)
    receipt = Receipt(plan=plan.name, layers=tuple(receipts))
    log.info(
        "converted %d of %d layers: %d bytes, before %d",
        len(layouts),
        len(table),
        receipt.bytes_after,
        receipt.bytes_before,
    )
    return receipt


def _layout(spec: LayerSpec, bits: LayerBits, symmetric: bool, dynamic: bool) -> LayerLayout:
    return LayerLayout(
        name=spec.name,
        bits=bits,
        symmetric=symmetric or bits.is_float,
        splits=spec.input_splits,
        bos=spec.bos,
        dynamic=dynamic,
    )


def _choose(
    modules: Mapping[str, nn.Linear | nn.Conv2d], layouts: Mapping[str, LayerLayout], backend: str
) -> dict[str, Choice]:
    """Return layer -> the backend that will run it here, and who refused before."""
    choices: dict[str, Choice] = {}
    complaints, unwilling = [], []
    for name, module in modules.items():
        weight = module.weight
        try:
            requests = kernel_requests(module, layouts[name], device=weight.device.type, dtype=weight.dtype)
        except ValueError as error:
            complaints.append(str(error))
            continue
        try:
            willing = [select(request, backend) for request in requests]
        except NoBackendError as error:
            unwilling.append(error)
            continue
        # Parts of one layer differ in channels alone, but a backend may mind that.
        names = dict.fromkeys(chosen.name for chosen, _ in willing)
        refusals = {refuser: reasons for _, refused in willing for refuser, reasons in refused.items()}
        choices[name] = (", ".join(names), refusals)
    if complaints:
        raise plan_error("the plan asks for layers that cannot be built", complaints)
    if unwilling:
        more = f" {len(unwilling) - 1} more layers are refused too." if len(unwilling) > 1 else ""
        raise NoBackendError(f"{unwilling[0]}{more}", refusals=unwilling[0].refusals)
    return choices


def _successor(
    module: nn.Linear | nn.Conv2d,
    spec: LayerSpec,
    layout: LayerLayout,
    record: CalibrationRecord,
    backend: str,
    rounding: str,
) -> QuantizedLinear | QuantizedConv2d:
    with torch.no_grad():
        parts = quantize_weight(
            module.weight,
            layout.bits.weight,
            symmetric=layout.symmetric,
            number=layout.bits.number,
            splits=layout.splits,
            rounding=rounding,
            name=spec.name,
        )
    activation = None
    if not (layout.weight_only or layout.dynamic):
        bits = layout.bits
        activation = [activation_qparams(rng, bits.activation, bits.number) for rng in record.ranges[spec.name]]
    if isinstance(module, nn.Conv2d):
        return QuantizedConv2d.from_float(module, layout, parts, activation, backend=backend)
    bos = None
    if layout.bos:
        assert record.bos_input is not None
        bos = BosRow(input=record.bos_input, output=record.bos_outputs[spec.name])
    return QuantizedLinear.from_float(module, layout, parts, activation, bos, backend=backend)


def _replace(denoiser: nn.Module, name: str, successor: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(denoiser.get_submodule(parent), child, successor)


def _receipt(spec: LayerSpec, bits: LayerBits, module: nn.Module, choice: Choice | None) -> LayerReceipt:
    bias = getattr(module, "bias", None)
    bias_numel = 0 if bias is None else bias.numel()
    before = FLOAT_BYTES * (spec.weight_numel + bias_numel)
    if choice is None:
        return LayerReceipt(
            layer=spec.name, bits=bits, backend=None, refusals={}, bytes_before=before, bytes_after=before
        )
    kept = [tensor for name, tensor in module.state_dict().items() if name != "bias"]
    after = FLOAT_BYTES * bias_numel + sum(tensor.numel() * tensor.element_size() for tensor in kept)
    return LayerReceipt(
        layer=spec.name, bits=bits, backend=choice[0], refusals=choice[1], bytes_before=before, bytes_after=after
    )
