"""Makes the golden files of the present format: `python tests/integrations/golden/make.py FOLDER`.

What lies in `v1`, and then in `v2` the folder `floats`, was made so, once, by the first version that wrote that format,
and is never made again: it must open in every later version. A new format gets a folder of its own, and the old ones
stay.
"""

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import mixdq
from mixdq.quant.weights import weight_codes
from mixdq.runtime.layer import QuantizedLayer
from mixdq.testing import tiny_sd_pipeline, tiny_sdxl_pipeline
from mixdq.types.layers import LayerSpec
from mixdq.types.plan import BitPlan, Budget, LayerBits, SolverFacts

PROMPTS = ("a red dog", "two cats")
SMALL, LARGE = ("W8A8", "W4A8", "W2A16", "W16A16", "W5A6", "W8A16"), ("W2A8", "W2A16", "W2A4", "W2A8", "W3A8")
LARGE_WEIGHTS = 1000


def main(folder: Path) -> None:
    make(tiny_sdxl_pipeline(), folder / "sdxl", {})
    how = {"symmetric": False, "activations": "dynamic"}
    make(tiny_sd_pipeline(), folder / "sd", how, max_shard_size="64KB")
    make(tiny_sdxl_pipeline(), folder / "floats", {}, floats=True)


def make(pipe: Any, folder: Path, how: dict[str, Any], *, floats: bool = False, **save: Any) -> None:
    """Quantize, save into `folder/unet`, and write what it holds and answers beside it."""
    # Halves are saved as halves, which takes half the space.
    pipe.unet.to(torch.float16).to(torch.float32)
    table, record = mixdq.inspect(pipe), mixdq.calibrate(pipe, PROMPTS)
    plan = BitPlan(
        name="golden",
        layers={spec.name: LayerBits.parse(_width(spec, i, floats)) for i, spec in enumerate(table)},
        budget=Budget(weight_bits=5.0, keep=("conv_in",)),
        solver=SolverFacts(solver="highs", objective="raw", values={"weight.content": 1.5}, content_quality_ratio=0.9),
        origin={"model": "abc"},
    )
    mixdq.apply(pipe, plan, record, table, backend="reference", **how)
    pipe.unet.save_pretrained(folder / "unet", **save)
    (folder / "layers.json").write_text(json.dumps(layers_of(pipe.unet), indent=0) + "\n")
    asked = inputs(pipe.unet)
    save_file({**asked, "answer": answer(pipe.unet, asked)}, folder / "answer.safetensors")


def layers_of(unet: Any) -> dict[str, list[str]]:
    """Return quantized layer -> bits, digest of its codes as int8, digest of its weight as float32."""
    return {
        name: [
            str(layer.layout.bits),
            _digest(*(weight_codes(part) for part in layer.parts())),
            _digest(layer.float_weight()),
        ]
        for name, layer in unet.named_modules()
        if isinstance(layer, QuantizedLayer)
    }


def inputs(unet: Any) -> dict[str, torch.Tensor]:
    """Return what the denoiser is asked: noise, and a text that begins with the calibrated token."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 16, unet.config.cross_attention_dim, generator=generator)
    text[:, 0] = next(m.bos_input for m in unet.modules() if isinstance(m, QuantizedLayer) and m.bos_input is not None)
    return {"sample": torch.randn(1, 4, 8, 8, generator=generator), "encoder_hidden_states": text}


def answer(unet: Any, asked: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what the denoiser answers, [1, 4, 8, 8]."""
    added = {"text_embeds": torch.ones(1, 32), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        return unet(**asked, timestep=torch.tensor(499), added_cond_kwargs=added).sample


def _width(spec: LayerSpec, i: int, floats: bool) -> str:
    widths = LARGE if math.prod(spec.weight_shape) > LARGE_WEIGHTS else SMALL
    if floats and spec.op == "linear" and (spec.bos or i % 5 == 0):
        return "W8A8 float"
    return widths[i % len(widths)]


def _digest(*tensors: torch.Tensor) -> str:
    data = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(data).hexdigest()[:8]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
