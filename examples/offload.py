"""Keep a quantized model in ordinary memory and bring each layer to the device only when it runs.

python examples/offload.py [FOLDER] [--device cuda] [--backend reference]
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from diffusers.utils import numpy_to_pil

import mixdq
from mixdq.demo import MODEL

PROMPTS = ["a large cartoon of a fox on a blue background"]


def main() -> None:
    """Print whether the offloaded model draws the same picture, way by way; write it to FOLDER."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="example_pictures", type=Path)
    parser.add_argument("--device", default="cpu", help="where layers run; from the CPU to itself nothing is gained")
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()

    def opened() -> DiffusionPipeline:
        recipe = mixdq.MixDQConfig(weight_bits=8, backend=options.backend)
        mapping = PipelineQuantizationConfig(quant_mapping={"unet": recipe})
        return DiffusionPipeline.from_pretrained(MODEL, quantization_config=mapping)

    wanted = mixdq.generate(opened().to(options.device), PROMPTS)
    groups = {"onload_device": torch.device(options.device), "offload_device": torch.device("cpu")}
    ways = {
        "group offload, layer by layer": {"offload_type": "leaf_level"},
        "group offload, two blocks at once": {"offload_type": "block_level", "num_blocks_per_group": 2},
    }
    if options.device != "cpu":
        ways["group offload, copies on a stream"] = {"offload_type": "leaf_level", "use_stream": True}
    for name, way in ways.items():
        pipe = opened()
        pipe.unet.enable_group_offload(**groups, **way)
        for component in (pipe.text_encoder_2, pipe.vae):
            component.to(options.device)
        print(f"{name}: the same picture is {torch.equal(mixdq.generate(pipe, PROMPTS), wanted)}")
    if options.device != "cpu":
        for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
            pipe = opened()
            getattr(pipe, name)(device=options.device)
            print(f"{name}: the same picture is {torch.equal(mixdq.generate(pipe, PROMPTS), wanted)}")

    path = options.folder / "offload.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    numpy_to_pil(wanted.permute(0, 2, 3, 1).numpy())[0].resize((256, 256)).save(path)
    print(path)


if __name__ == "__main__":
    main()
