"""Export of a quantized UNet to the file that ComfyUI opens by itself, with "Load Diffusion Model".

ComfyUI's mixed checkpoints hold, in one safetensors file of the community's tensor names, for each quantized layer

    weight         int8 [out, in]
    weight_scale   float32 [out, 1]
    comfy_quant    uint8, the characters of {"format": "int8_tensorwise"}

and stand for `weight * weight_scale`. ComfyUI multiplies them in integers, with inputs scaled at run time, token by
token; with "full_precision_matrix_mult" in the JSON it multiplies them in floating point. So a Linear layer with a
symmetric weight of 2 to 8 bits, of integers, is held exactly, and anything else becomes float16. Calibrated input
scales and BOS rows have no place there. As read in ComfyUI's comfy/ops.py and comfy-kitchen 0.2.40.

The nodes that run a saved pipeline inside ComfyUI are in the folder `comfyui`, not here.
"""

import json
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from mixdq.errors import ConfigError, NonFiniteError, UnsupportedModelError
from mixdq.integrations.unet_names import community_names
from mixdq.pipeline.family import find_family
from mixdq.pipeline.load import load_pipeline
from mixdq.quant.weights import weight_codes
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.linear import QuantizedLinear
from mixdq.types.plan import LayerBits

log = logging.getLogger(__name__)

FORMAT = "int8_tensorwise"
"""ComfyUI's name of the layout; a scale for each row is one of its kinds."""


@dataclass(frozen=True, kw_only=True)
class ExportedLayer:
    """What became of one quantized layer: `name` is diffusers', `key` the file's, `why` says it in words."""

    name: str
    key: str
    bits: LayerBits
    stored: Literal["int8", "float16"]
    why: str


@dataclass(frozen=True, kw_only=True)
class ComfyUIExport:
    """A written file and what is in it; `str()` is a line for each kind of layer."""

    file: Path
    layers: tuple[ExportedLayer, ...]

    def __str__(self) -> str:
        kinds = Counter((layer.stored, layer.why) for layer in self.layers)
        lines = [f"{count} quantized layers as {stored}: {why}" for (stored, why), count in sorted(kinds.items())]
        return "\n".join([f"{self.file}: {self.file.stat().st_size / 2**20:.1f} MiB", *lines, "all else as float16"])


def export_comfyui(model: str | Path | DiffusionPipeline, file: str | Path) -> ComfyUIExport:
    """Write the quantized UNet of a pipeline (a folder, or loaded and not offloaded) for ComfyUI; return what is in it.

    The model is not changed. An existing `file` is replaced, once the new one is whole.

    Raises:
        ConfigError: the name does not end in .safetensors, or the model is float, offloaded or carries adapters, or
            has no layer that the format can hold.
        NonFiniteError: a number is beyond float16.
        UnsupportedModelError: the denoiser is no UNet that community checkpoints know.
    """
    path = Path(file)
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: ComfyUI reads safetensors; end the name in .safetensors")
    pipe = load_pipeline(model)
    denoiser: Any = find_family(pipe).denoiser(pipe)
    if not isinstance(denoiser, UNet2DConditionModel):
        raise UnsupportedModelError(
            f"{type(denoiser).__name__}: the export to ComfyUI knows UNets (SD 1.5, 2.1, SDXL) only; the MixDQ nodes "
            "run any saved pipeline"
        )
    tensors, layers = _contents(denoiser)
    _write(tensors, path)
    export = ComfyUIExport(file=path, layers=layers)
    log.info("%s", export)
    return export


def _contents(unet: Any) -> tuple[dict[str, Tensor], tuple[ExportedLayer, ...]]:
    """Return all tensors of the file, and what became of each quantized layer."""
    state: dict[str, Tensor] = unet.state_dict()
    if any(".base_layer." in name for name in state):
        raise ConfigError("The model carries adapters: unload them (pipe.unload_lora_weights); ComfyUI has its own.")
    if any(tensor.is_meta for tensor in state.values()):
        raise ConfigError("The model is offloaded, so its tensors are not at hand: export the saved folder instead.")
    quantized = {
        name: module for name, module in unet.named_modules() if isinstance(module, QuantizedLinear | QuantizedConv2d)
    }
    if not quantized:
        raise ConfigError("The model is not quantized: `mixdq quantize MODEL -o OUT`, and export OUT/model.")
    renamed = community_names(unet)
    tensors = {
        renamed(name): _half(name, tensor)
        for name, tensor in state.items()
        if name.endswith(".bias") or name.rpartition(".")[0] not in quantized
    }
    layers = []
    for name, layer in quantized.items():
        key, refusal = renamed(name), _refusal(layer)
        if refusal is None:
            in_float = layer.layout.weight_only or layer.layout.bos
            marker = {"format": FORMAT, **({"full_precision_matrix_mult": True} if in_float else {})}
            tensors[f"{key}.weight"] = weight_codes(layer.parts()[0]).cpu().contiguous()
            tensors[f"{key}.weight_scale"] = layer.weight_scale.cpu().contiguous()
            tensors[f"{key}.comfy_quant"] = torch.tensor(list(json.dumps(marker).encode()), dtype=torch.uint8)
        else:
            tensors[f"{key}.weight"] = _half(f"{name}.weight", layer.float_weight())
        layers.append(
            ExportedLayer(
                name=name,
                key=key,
                bits=layer.layout.bits,
                stored="int8" if refusal is None else "float16",
                why=refusal or _multiplied(layer),
            )
        )
    if all(layer.stored == "float16" for layer in layers):
        reasons = "; ".join(sorted({layer.why for layer in layers}))
        raise ConfigError(f"ComfyUI's format holds none of the {len(layers)} quantized layers ({reasons}).")
    return tensors, tuple(layers)


def _refusal(layer: QuantizedLinear | QuantizedConv2d) -> str | None:
    """Return why the format cannot hold a layer's weight; None where it can."""
    if isinstance(layer, QuantizedConv2d):
        return "ComfyUI has no quantized convolutions"
    if layer.layout.bits.is_float:
        return "the weight's codes are E4M3 floats, and the format's are integers"
    if not layer.layout.symmetric:
        return "the weight has zero points, and the format has none"
    if layer.layout.num_parts > 1:
        return "the weight has several scales a row, and the format has one"
    return None


def _multiplied(layer: QuantizedLinear | QuantizedConv2d) -> str:
    if layer.layout.weight_only:
        return "multiplied in floating point, as in the plan"
    if layer.layout.bos:
        return "multiplied in floating point, for the first text token would lose its small features in 8 bits"
    return "multiplied in integers, inputs in 8 bits scaled token by token"


def _half(name: str, tensor: Tensor) -> Tensor:
    half = tensor.detach().to("cpu", torch.float16).contiguous()
    if not bool(torch.isfinite(half).all()):
        raise NonFiniteError(f"{name}: NaN, infinity, or a number beyond float16, in which it is exported", where=name)
    return half


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
