"""Ways to prompt: the first text token, whose row is stored, is right in all of them.

python examples/prompts.py [FOLDER]
"""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid, numpy_to_pil

import mixdq
from mixdq.demo import CALIBRATION_PROMPTS, MODEL
from mixdq.types.plan import BitPlan, LayerBits

PROMPT = "a large cartoon of a fox on a blue background"
EIGHT = LayerBits(weight=8, activation=8)


def pictures(pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """Return the picture [1, 3, 64, 64] of every way to prompt."""

    def draw(prompt: str | None = None, guidance_scale: float = 0.0, **inputs: object) -> torch.Tensor:
        noise = torch.Generator().manual_seed(0)
        return pipe(
            prompt, guidance_scale=guidance_scale, **inputs, num_inference_steps=1, generator=noise, output_type="pt"
        ).images

    embeds, _, pooled, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    table = pipe.text_encoder_2.get_input_embeddings().weight
    fox, panda = (table[pipe.tokenizer_2(word).input_ids[1]] for word in ("fox", "panda"))
    names = {"text_encoder": pipe.text_encoder_2, "tokenizer": pipe.tokenizer_2}
    pipe.load_textual_inversion({"<foxpanda>": (fox + panda).detach() / 2}, token="<foxpanda>", **names)
    return {
        "plain": draw(PROMPT),
        "weighted": draw(prompt_embeds=1.2 * embeds, pooled_prompt_embeds=pooled),
        "negative": draw(PROMPT, 1.5, negative_prompt="gray background"),
        "taught word": draw(PROMPT.replace("fox", "<foxpanda>")),
    }


def main(folder: str = "example_pictures") -> None:
    """Print how near the quantized pictures are, way by way; write them to `folder` below the float ones."""
    pipe = DiffusionPipeline.from_pretrained(MODEL)
    table = mixdq.inspect(pipe)
    record = mixdq.calibrate(pipe, CALIBRATION_PROMPTS.read_text(encoding="utf-8").splitlines()[:8], table=table)
    plan = BitPlan(name="8 bits", layers={layer.name: EIGHT for layer in table})
    wanted = pictures(pipe)
    pipe.unload_textual_inversion(tokenizer=pipe.tokenizer_2, text_encoder=pipe.text_encoder_2)
    found = pictures(mixdq.apply(pipe, plan, record, table))
    for way, picture in found.items():
        print(f"{way}: {mixdq.evaluate(wanted[way], picture, [way])['psnr']:.1f} dB PSNR")

    path = Path(folder, "prompts.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = numpy_to_pil(torch.cat([*wanted.values(), *found.values()]).permute(0, 2, 3, 1).numpy())
    make_image_grid(shown, rows=2, cols=len(found), resize=256).save(path)
    print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
