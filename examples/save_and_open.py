"""Calibrate, quantize, save an ordinary diffusers folder and open it again: the same picture, bit for bit.

python examples/save_and_open.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid, numpy_to_pil

import mixdq
from mixdq.demo import CALIBRATION_PROMPTS, MODEL
from mixdq.types.plan import BitPlan, LayerBits

PROMPTS = ["a large cartoon of a fox on a blue background", "a small 3d render of a house on a green background"]
WIDTHS = {"content": LayerBits(weight=4, activation=8), "quality": LayerBits(weight=8, activation=8)}


def main(folder: str = "example_pictures") -> None:
    """Print sizes and how near the pictures are; write float, quantized and opened pictures to `folder`."""
    pipe = DiffusionPipeline.from_pretrained(MODEL)
    before = mixdq.generate(pipe, PROMPTS)

    # Written by hand here; `mixdq quantize` finds the plan that spends the same bytes best, in minutes.
    table = mixdq.inspect(pipe)
    plan = BitPlan(name="by hand", layers={layer.name: WIDTHS[layer.group] for layer in table})
    record = mixdq.calibrate(pipe, CALIBRATION_PROMPTS.read_text(encoding="utf-8").splitlines()[:16], table=table)
    mixdq.apply(pipe, plan, record, table)
    quantized = mixdq.generate(pipe, PROMPTS)

    with tempfile.TemporaryDirectory() as saved:
        pipe.save_pretrained(saved)
        opened = mixdq.generate(DiffusionPipeline.from_pretrained(saved), PROMPTS)
        was, now = (sum(file.stat().st_size for file in Path(root, "unet").iterdir()) for root in (MODEL, saved))
    likeness = mixdq.evaluate(before, quantized, PROMPTS)
    print(f"UNet: {was / 1e6:.1f} MB in float16, {now / 1e6:.1f} MB quantized; {likeness['psnr']:.1f} dB PSNR")
    print(f"the opened model draws the same picture: {torch.equal(opened, quantized)}")

    path = Path(folder, "save_and_open.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = numpy_to_pil(torch.cat([before, quantized, opened]).permute(0, 2, 3, 1).numpy())
    make_image_grid(pictures, rows=3, cols=len(PROMPTS), resize=256).save(path)
    print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
