"""Quantize a model from Python: a folder, a hub id, or a pipeline that is loaded already.

python examples/quantize.py MODEL OUT
"""

import sys

import mixdq


def main(model: str, out: str) -> None:
    """Quantize `model` to 4 bits a weight; OUT/model is the result and OUT/report.html the proof."""
    pipe = mixdq.quantize(model, weight_bits=4, activation_bits=8, output=out)
    picture = pipe("a large cartoon of a fox on a blue background", num_inference_steps=1, guidance_scale=0.0).images[0]
    picture.save(f"{out}/picture.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
