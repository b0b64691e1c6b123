"""Making a denoiser that was quantized in memory one that diffusers knows as quantized."""

from typing import Any

from mixdq.integrations.checksums import note_config
from mixdq.integrations.diffusers.adapters import guard_adapters
from mixdq.integrations.diffusers.config import MixDQConfig, MixDQMethod
from mixdq.integrations.diffusers.quantizer import MixDQQuantizer
from mixdq.integrations.saved_format import SavedModel
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.select import AUTO
from mixdq.types.layers import LayerTable
from mixdq.types.plan import Activations, BitPlan
from mixdq.types.tensors import CalibrationRecord


def attach_config(
    denoiser: Any,
    plan: BitPlan,
    table: LayerTable,
    record: CalibrationRecord,
    *,
    backend: str = AUTO,
    symmetric: bool = True,
    activations: Activations = "static",
) -> MixDQConfig:
    """Make a denoiser that `convert` has just quantized saveable, and return its config.

    The arguments are those that `convert` was called with. From now on diffusers knows the denoiser as quantized:
    `save_pretrained` writes it, `.half()` and `.to(dtype)` raise, `.dequantize()` gives a float model.
    """
    layers = [spec for spec in table if isinstance(denoiser.get_submodule(spec.name), QuantizedLayer)]
    saved = SavedModel(
        plan=plan,
        symmetric=symmetric,
        activations=activations,
        input_splits={spec.name: spec.input_splits for spec in layers if spec.input_splits},
        bos_layers=tuple(spec.name for spec in layers if spec.bos),
        calibration=dict(record.origin),
    )
    config = MixDQConfig.describing(saved, backend=backend)
    denoiser.register_to_config(quantization_config=config, _pre_quantization_dtype=denoiser.dtype)
    denoiser.hf_quantizer = MixDQQuantizer(config, pre_quantized=True)
    denoiser.is_quantized = True
    denoiser.quantization_method = MixDQMethod.MIXDQ
    guard_adapters(denoiser)
    note_config(denoiser)
    return config
