"""The shipped folder: what `StableDiffusionXLPipeline.from_pretrained` opens, and the image tower beside it."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from recipes.emoji_turbo import denoiser, distil, shapes, tokenizer
from recipes.emoji_turbo.bank import Bank
from recipes.emoji_turbo.config import Config, Workspace

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 2**20
# Folding moves factors between float32 weights; outputs may differ by rounding, a few parts in a million.
FOLDING_TOLERANCE = 1e-3


def ship(config: Config, workspace: Workspace) -> None:
    """Fold the student's conditioning into its weights, check that nothing changed, and write the shipped folder."""
    bank = Bank(config, workspace)
    student = distil.train(config, workspace, bank).eval()
    write(config, bank, student, workspace.shipped)


def write(config: Config, bank: Bank, student: UNet2DConditionModel, folder: Path) -> None:
    """Write a folder with the given UNet, which takes scaled text states before and plain ones after."""
    generator = torch.Generator().manual_seed(config.seed + 60)
    batch, _ = bank.draw(generator, 8)
    diffusion = denoiser.Diffusion(config)
    times = torch.full((8,), 999, device=batch.noise.device)
    plain = replace(batch, states=batch.states / bank.scale.to(batch.states.device))
    with torch.no_grad():
        before = diffusion.predict(student, batch.noise, times, batch)
        denoiser.fold(student, bank.scale)
        after = diffusion.predict(student, batch.noise, times, plain)
    difference = float((before - after).abs().max())
    log.info("folding moved the largest output by %.2g", difference)
    if difference > FOLDING_TOLERANCE:
        raise ValueError(f"folding changed an output by {difference:g}, more than rounding can")
    towers = bank.towers
    built = pipeline(student, towers.text, towers.tokenizer, bank.autoencoder, shapes.scheduler())
    save(built, towers.image, folder)


def pipeline(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModelWithProjection,
    words: CLIPTokenizer,
    autoencoder: AutoencoderTiny,
    scheduler: LCMScheduler,
) -> StableDiffusionXLPipeline:
    """Return the parts as a pipeline of SDXL's kind with a single text encoder, as the SDXL refiner has."""
    built = StableDiffusionXLPipeline(
        vae=autoencoder,
        text_encoder=None,
        text_encoder_2=text_encoder,
        tokenizer=None,
        tokenizer_2=words,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    built.set_progress_bar_config(disable=True)
    return built


def save(built: StableDiffusionXLPipeline, image_tower: CLIPVisionModelWithProjection, folder: Path) -> int:
    """Write everything in float16 and return the bytes written; the models passed in become float16.

    Raises:
        ValueError: the folder came out larger than `MAX_BYTES`.
    """
    for part in ("unet", "text_encoder_2", "vae", "scheduler", "tokenizer_2", "image_tower"):
        shutil.rmtree(folder / part, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    built.to(dtype=torch.float16)
    built.save_pretrained(folder)
    tokenizer.save(built.tokenizer_2, folder / "tokenizer_2")
    image_tower.half().save_pretrained(folder / "image_tower")
    for part in ("text_encoder_2", "image_tower"):
        # transformers opens a model in the type that its config names, diffusers in float32: a plain `from_pretrained`
        # would give a pipeline of both.
        config = folder / part / "config.json"
        config.write_text(config.read_text(encoding="utf-8").replace('"dtype": "float16"', '"dtype": "float32"'))
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(f"{folder} holds {size} bytes, more than the {MAX_BYTES} allowed; use narrower models")
    log.info("%s: %.1f MiB", folder.name, size / 2**20)
    return size
