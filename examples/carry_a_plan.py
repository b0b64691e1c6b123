"""Carry a plan to a fine-tune of the same architecture: `mixdq apply --plan` checks first whether it still holds there.

python examples/carry_a_plan.py [FOLDER] [--prompts 16]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid, numpy_to_pil

import mixdq
from mixdq.cli.main import app
from mixdq.demo import CALIBRATION_PROMPTS, MODEL

PROMPTS = ["a large cartoon of a fox on a blue background", "a small 3d render of a house on a green background"]
PLAN = Path(__file__).parent / "plans" / "emoji_turbo_w4a8.toml"
"""What `make demo` found for the embedded model: plan.toml of its W4A8 variant."""


def main() -> None:
    """Print the verdict; write pictures of the fine-tune, float and quantized, to FOLDER."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="example_pictures", type=Path)
    parser.add_argument("--prompts", type=int, default=16, help="how many to calibrate and check with")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        # In the place of a fine-tune: every weight a little off.
        pipe = DiffusionPipeline.from_pretrained(MODEL)
        tuned, out, prompts = (Path(work, name) for name in ("fine-tune", "out", "prompts.txt"))
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in (each for each in pipe.unet.parameters() if each.ndim > 1):
                weight += 0.005 * weight.std() * torch.randn(weight.shape, generator=draw)
        pipe.save_pretrained(tuned)
        before = mixdq.generate(pipe, PROMPTS)

        lines = CALIBRATION_PROMPTS.read_text(encoding="utf-8").splitlines()[: options.prompts]
        prompts.write_text("\n".join(lines), encoding="utf-8")
        # What the command line does: mixdq apply --plan PLAN fine-tune -o out --prompts prompts.txt
        command = ["apply", "--plan", PLAN, tuned, "-o", out, "--prompts", prompts]
        if app([str(word) for word in command], standalone_mode=False):
            raise SystemExit(1)
        after = mixdq.generate(DiffusionPipeline.from_pretrained(out / "model"), PROMPTS)
    print(f"float and quantized fine-tune: {mixdq.evaluate(before, after, PROMPTS)['psnr']:.1f} dB PSNR")

    path = options.folder / "carry_a_plan.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = numpy_to_pil(torch.cat([before, after]).permute(0, 2, 3, 1).numpy())
    make_image_grid(pictures, rows=2, cols=len(PROMPTS), resize=256).save(path)
    print(path)


if __name__ == "__main__":
    main()
