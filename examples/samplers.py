"""Other schedulers, more steps and guidance with a quantized UNet.

python examples/samplers.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, PipelineQuantizationConfig
from diffusers.utils import make_image_grid, numpy_to_pil

import mixdq
from mixdq.demo import MODEL

PROMPTS = ["a large cartoon of a fox on a blue background"]
WAYS = {"1 step": (1, 0.0), "4 steps": (4, 0.0), "4 steps, guidance 1.5": (4, 1.5)}


def main(folder: str = "example_pictures") -> None:
    """Print how near the quantized pictures are, way by way; write them to `folder` below the float ones."""
    config = PipelineQuantizationConfig(quant_mapping={"unet": mixdq.MixDQConfig(weight_bits=8)})
    pipes = [DiffusionPipeline.from_pretrained(MODEL, quantization_config=each) for each in (None, config)]
    rows: tuple[list[torch.Tensor], ...] = ([], [])
    # Few-step models are trained from pure noise on: "trailing" begins there.
    euler = EulerDiscreteScheduler.from_config(pipes[0].scheduler.config, timestep_spacing="trailing")
    for scheduler in (pipes[0].scheduler, euler):
        for name, (steps, guidance_scale) in WAYS.items():
            for pipe, row in zip(pipes, rows, strict=True):
                pipe.scheduler = type(scheduler).from_config(scheduler.config)
                row.append(mixdq.generate(pipe, PROMPTS, steps=steps, guidance_scale=guidance_scale))
            likeness = mixdq.evaluate(rows[0][-1], rows[1][-1], PROMPTS)
            print(f"{type(scheduler).__name__}, {name}: {likeness['psnr']:.1f} dB PSNR")

    path = Path(folder, "samplers.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = numpy_to_pil(torch.cat([*rows[0], *rows[1]]).permute(0, 2, 3, 1).numpy())
    make_image_grid(pictures, rows=2, cols=len(rows[0]), resize=256).save(path)
    print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
