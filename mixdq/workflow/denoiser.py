"""The one place where a denoiser is quantized for good: converted, and made known to diffusers by the same settings."""

from torch import nn

from mixdq.conversion.convert import convert
from mixdq.integrations.diffusers import attach_config
from mixdq.runtime.select import AUTO
from mixdq.types.layers import LayerTable
from mixdq.types.plan import Activations, BitPlan
from mixdq.types.progress import Progress, no_progress
from mixdq.types.receipt import Receipt
from mixdq.types.tensors import CalibrationRecord


def quantize_denoiser(
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
    """Quantize a denoiser in place, so that `save_pretrained` writes it, and return what was done, layer by layer.

    Raises what `mixdq.conversion.convert.convert` raises, before anything is touched.
    """
    receipt = convert(
        denoiser,
        plan,
        table,
        record,
        backend=backend,
        symmetric=symmetric,
        rounding=rounding,
        activations=activations,
        progress=progress,
    )
    attach_config(denoiser, plan, table, record, backend=backend, symmetric=symmetric, activations=activations)
    return receipt
