"""MixDQ as one of diffusers' quantization methods: `save_pretrained` and `from_pretrained` work as for any model.

A saved denoiser is plain safetensors (codes, scales, BOS rows; see `mixdq.runtime.layout`) and a `quantization_config`
in config.json (see `mixdq.integrations.saved_format`). Opening one needs `import mixdq` alone: no calibration, and no
float weights in memory. A float model is quantized while it loads where a `MixDQConfig` says how.
"""

from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from mixdq.integrations.diffusers.attaching import attach_config
from mixdq.integrations.diffusers.config import MixDQConfig
from mixdq.integrations.diffusers.quantizer import MixDQQuantizer
from mixdq.integrations.saved_format import METHOD

__all__ = ["MixDQConfig", "MixDQQuantizer", "attach_config", "register"]


def register() -> None:
    """Enter MixDQ in diffusers' tables; again and again, if you like."""
    AUTO_QUANTIZER_MAPPING[METHOD] = MixDQQuantizer
    AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = MixDQConfig


register()
