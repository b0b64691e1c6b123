"""Compile a quantized UNet with torch.compile, each kind of block once.

python examples/compile_blocks.py [FOLDER] [--compiler inductor]
"""

import argparse
import time
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from diffusers.utils import make_image_grid, numpy_to_pil

import mixdq
from mixdq.demo import MODEL

PROMPTS = ["a large cartoon of a fox on a blue background"]


def seconds(pipe: DiffusionPipeline, calls: int) -> float:
    """Return the least time that a picture took."""
    taken = []
    for _ in range(calls):
        begun = time.perf_counter()
        mixdq.generate(pipe, PROMPTS)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def main() -> None:
    """Print times and likeness; write the eager and the compiled picture to FOLDER."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="example_pictures", type=Path)
    parser.add_argument("--compiler", default="inductor", help="aot_eager traces alone, in seconds")
    options = parser.parse_args()

    config = mixdq.MixDQConfig(weight_bits=8, activation_bits=8, activations="dynamic")
    mapping = PipelineQuantizationConfig(quant_mapping={"unet": config})
    pipe = DiffusionPipeline.from_pretrained(MODEL, quantization_config=mapping)
    eager = mixdq.generate(pipe, PROMPTS)
    before = seconds(pipe, 5)

    pipe.unet.compile_repeated_blocks(backend=options.compiler, fullgraph=True)
    first = seconds(pipe, 1)
    compiled, after = mixdq.generate(pipe, PROMPTS), seconds(pipe, 5)
    print(f"a picture takes {before:.3f} s eager, {after:.3f} s compiled, the first time {first:.1f} s")
    print(f"the two are {mixdq.evaluate(eager, compiled, PROMPTS)['psnr']:.1f} dB alike")

    path = options.folder / "compile_blocks.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = numpy_to_pil(torch.cat([eager, compiled]).permute(0, 2, 3, 1).numpy())
    make_image_grid(pictures, rows=1, cols=2, resize=256).save(path)
    print(path)


if __name__ == "__main__":
    main()
