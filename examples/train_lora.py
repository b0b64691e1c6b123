"""Train a LoRA on a quantized model, save it, load it into another, scale it and unload it.

Needs PEFT: pip install peft

python examples/train_lora.py [FOLDER] [--steps 40]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig
from diffusers.utils import convert_state_dict_to_diffusers, make_image_grid, numpy_to_pil
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import mixdq
from mixdq.demo import MODEL

PROMPT, SHOWN = (f"a large cartoon of a {thing} on a blue background" for thing in ("fox", "panda"))
"""The LoRA is to draw for the first what the model draws for the second."""
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]


def open_quantized() -> DiffusionPipeline:
    """Return the embedded pipeline with a UNet of 4-bit weights."""
    config = PipelineQuantizationConfig(quant_mapping={"unet": mixdq.MixDQConfig(weight_bits=4)})
    return DiffusionPipeline.from_pretrained(MODEL, quantization_config=config)


def train(pipe: DiffusionPipeline, teacher: DiffusionPipeline, steps: int) -> list[float]:
    """Add a LoRA to the UNet and train it; return the loss of every step. Codes stay as they are."""
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS))
    learnt = [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-3)
    size = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * 2)
    inputs = {}
    for prompt in (PROMPT, SHOWN):
        with torch.no_grad():
            text, _, pooled, _ = pipe.encode_prompt([prompt] * 2, do_classifier_free_guidance=False)
        inputs[prompt] = {
            "timestep": 999,
            "encoder_hidden_states": text,
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": size},
        }
    draw, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        noise = torch.randn(2, 8, 16, 16, generator=draw)
        with torch.no_grad():
            target = teacher.unet(noise, **inputs[SHOWN]).sample
        loss = torch.nn.functional.mse_loss(pipe.unet(noise, **inputs[PROMPT]).sample, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Print the loss before and after, and that unloading leaves nothing; write the pictures to FOLDER."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="example_pictures", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()

    trained, pipe = open_quantized(), open_quantized()
    losses = train(trained, pipe, options.steps)
    print(f"loss: {losses[0]:.4f} before, {losses[-1]:.4f} after {options.steps} steps")
    rows = [mixdq.generate(pipe, [PROMPT])]
    with tempfile.TemporaryDirectory() as saved:
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(trained.unet))
        trained.save_lora_weights(saved, unet_lora_layers=layers)
        pipe.load_lora_weights(saved, adapter_name="panda")
    for scale in (0.5, 1.0):
        pipe.set_adapters("panda", scale)
        rows.append(mixdq.generate(pipe, [PROMPT]))
    pipe.unload_lora_weights()
    print(f"unloaded, it draws as before: {torch.equal(mixdq.generate(pipe, [PROMPT]), rows[0])}")

    path = options.folder / "train_lora.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(numpy_to_pil(torch.cat(rows).permute(0, 2, 3, 1).numpy()), rows=1, cols=3, resize=256).save(path)
    print(path)


if __name__ == "__main__":
    main()
