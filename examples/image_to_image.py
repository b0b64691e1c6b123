"""Image-to-image and inpainting from the parts of one quantized pipeline; nothing is loaded twice.

python examples/image_to_image.py [FOLDER]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline, PipelineQuantizationConfig
from diffusers.utils import make_image_grid, numpy_to_pil

import mixdq
from mixdq.demo import MODEL

START = "a large cartoon of a fox on a blue background"
TURNED = "a large cartoon of a panda on a red background"
HALVES = (slice(0, 32), slice(32, 64))
STEPS = {"num_inference_steps": 4, "guidance_scale": 0.0}


def main(folder: str = "example_pictures") -> None:
    """Print how much each way keeps of the first picture; write all three to `folder`."""
    config = PipelineQuantizationConfig(quant_mapping={"unet": mixdq.MixDQConfig(weight_bits=4)})
    pipe = DiffusionPipeline.from_pretrained(MODEL, quantization_config=config)
    draw = torch.Generator().manual_seed(0)
    first = pipe(START, **STEPS, generator=draw, output_type="pt").images

    turn = AutoPipelineForImage2Image.from_pipe(pipe)
    turned = turn(TURNED, image=first, strength=0.75, **STEPS, generator=draw, output_type="pt").images

    # For a UNet of 4 or 9 channels, AutoPipelineForInpainting.from_pipe(pipe) does this; this one has 8.
    kept = turn.vae.encode(first * 2 - 1).latents * turn.vae.config.scaling_factor
    mask = torch.zeros_like(kept)
    mask[..., kept.shape[-1] // 2 :] = 1.0

    def keep_left(pipe: Any, step: int, timestep: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        left, following = kept, pipe.scheduler.timesteps[step + 1 : step + 2]
        if len(following):
            left = pipe.scheduler.add_noise(kept, torch.randn(kept.shape, generator=draw), following)
        return {"latents": mask * values["latents"] + (1 - mask) * left}

    painted = turn(
        TURNED, image=first, strength=1.0, **STEPS, generator=draw, callback_on_step_end=keep_left, output_type="pt"
    ).images
    for name, picture in (("image-to-image", turned), ("inpainting", painted)):
        left, right = (mixdq.evaluate(first[..., half], picture[..., half], [START])["psnr"] for half in HALVES)
        print(f"{name}: the left half is {left:.1f} dB like before, the right half {right:.1f} dB")

    path = Path(folder, "image_to_image.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = numpy_to_pil(torch.cat([first, turned, painted]).permute(0, 2, 3, 1).numpy())
    make_image_grid(pictures, rows=1, cols=len(pictures), resize=256).save(path)
    print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
