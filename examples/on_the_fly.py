"""Quantize a float model while it loads, without calibration: `MixDQConfig` in the place of any other method's config.

python examples/on_the_fly.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from diffusers.utils import make_image_grid, numpy_to_pil

import mixdq
from mixdq.demo import MODEL

PROMPTS = ["a large cartoon of a fox on a blue background", "a small 3d render of a house on a green background"]
CONFIGS = {
    "8-bit weights": mixdq.MixDQConfig(weight_bits=8),
    "4-bit weights, first and last layer in float": mixdq.MixDQConfig(
        weight_bits=4, modules_to_not_convert=["conv_in", "conv_out"]
    ),
    "8-bit weights and activations": mixdq.MixDQConfig(weight_bits=8, activation_bits=8, activations="dynamic"),
}


def main(folder: str = "example_pictures") -> None:
    """Print the memory and the likeness of each config; write the pictures to `folder`, float ones first."""
    pipe = DiffusionPipeline.from_pretrained(MODEL)
    rows = [mixdq.generate(pipe, PROMPTS)]
    print(f"float32: UNet of {pipe.unet.get_memory_footprint() / 1e6:.1f} MB in memory")
    for name, config in CONFIGS.items():
        mapping = PipelineQuantizationConfig(quant_mapping={"unet": config})
        pipe = DiffusionPipeline.from_pretrained(MODEL, quantization_config=mapping)
        megabytes = pipe.unet.get_memory_footprint() / 1e6
        rows.append(mixdq.generate(pipe, PROMPTS))
        print(f"{name}: {megabytes:.1f} MB, {mixdq.evaluate(rows[0], rows[-1], PROMPTS)['psnr']:.1f} dB PSNR")

    path = Path(folder, "on_the_fly.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = numpy_to_pil(torch.cat(rows).permute(0, 2, 3, 1).numpy())
    make_image_grid(pictures, rows=len(rows), cols=len(PROMPTS), resize=256).save(path)
    print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
