"""ControlNet and T2I-Adapter around a quantized UNet: both stay in floating point, and are small beside it.

The two networks here are not trained: they only show that what they add comes through. Use your own in their place.

python examples/control.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    PipelineQuantizationConfig,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    T2IAdapter,
)
from diffusers.utils import make_image_grid, numpy_to_pil

import mixdq
from mixdq.demo import MODEL

PROMPT = "a large cartoon of a fox on a blue background"


def draw(pipe: DiffusionPipeline, **given: object) -> torch.Tensor:
    """Return the picture [1, 3, 64, 64] of one step."""
    noise = torch.Generator().manual_seed(0)
    return pipe(PROMPT, **given, num_inference_steps=1, guidance_scale=0.0, generator=noise, output_type="pt").images


def main(folder: str = "example_pictures") -> None:
    """Print how near float and quantized pictures are; write them to `folder`: plain, ControlNet, T2I-Adapter."""
    config = PipelineQuantizationConfig(quant_mapping={"unet": mixdq.MixDQConfig(weight_bits=8)})
    pipes = [DiffusionPipeline.from_pretrained(MODEL, quantization_config=each) for each in (None, config)]
    torch.manual_seed(0)
    # Of the float UNet, whose weights it begins with. Pictures of 64 pixels have latents of 16.
    net = ControlNetModel.from_unet(pipes[0].unet, conditioning_embedding_out_channels=(16, 32, 64))
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.2)
    adapter = T2IAdapter(channels=[64, 128, 192], num_res_blocks=1, downscale_factor=8, adapter_type="full_adapter_xl")
    square = torch.zeros(1, 3, 64, 64)
    square[..., 16:48, 16:48] = 1.0
    scale = {"adapter_conditioning_scale": 12.0}

    rows: list[dict[str, torch.Tensor]] = []
    for pipe in pipes:
        parts = {**pipe.components, "force_zeros_for_empty_prompt": False}
        ways = {
            "plain": (pipe, {}),
            "ControlNet": (StableDiffusionXLControlNetPipeline(**parts, controlnet=net), {"image": square}),
            "T2I-Adapter": (StableDiffusionXLAdapterPipeline(**parts, adapter=adapter), {"image": square, **scale}),
        }
        rows.append({name: draw(way, **given) for name, (way, given) in ways.items()})
    for name, picture in rows[1].items():
        likeness = [mixdq.evaluate(picture, other, [name])["psnr"] for other in (rows[0][name], rows[1]["plain"])]
        print(f"{name}: {likeness[0]:.1f} dB PSNR to the float model's, {likeness[1]:.1f} dB to the picture without it")

    path = Path(folder, "control.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = torch.cat([picture for row in rows for picture in row.values()])
    make_image_grid(numpy_to_pil(pictures.permute(0, 2, 3, 1).numpy()), rows=2, cols=3, resize=256).save(path)
    print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
