"""The model card's numbers: 1, 2 and 4 steps and the many-step teacher on captions of held-out pairs.

Three judges: the domain CLIP score (mean cosine of caption and picture under our two towers), the share of pictures
that find their caption among 100, and FD-EffLite0, the Fréchet distance to the true pictures on EfficientNet-Lite0
features. The last one is not FID: another network, a few hundred pictures, and shallow layers of the same network are
part of the distillation loss.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from recipes.emoji_turbo import autoencoder, captions, denoiser, image_tower, pictures, teacher, text_encoder
from recipes.emoji_turbo.bank import Bank, encode_captions
from recipes.emoji_turbo.config import Config, Workspace
from recipes.emoji_turbo.features import Features, frechet_distance

log = logging.getLogger(__name__)

STEPS = (1, 2, 4)
AMONG = 100
# How often a hundred captions are drawn for the retrieval accuracy, which is the mean.
DRAWS = 20
BATCH = 32
SHEET_COLUMNS = 10


def run(config: Config, workspace: Workspace) -> None:
    """Write `table.md` and `table.json` for the exported folder, and its sample sheets beside its model card."""
    folder = workspace.stage("evaluation")
    bank = Bank(config, workspace)
    renders = pictures.render(config, workspace)
    scenes = captions.single_scenes(config, len(renders.concepts), held_out=True)
    order = torch.randperm(len(scenes), generator=torch.Generator().manual_seed(config.seed + 50)).tolist()
    scenes = [scenes[index] for index in order]
    texts = [captions.full_caption(scene, renders.concepts, config.styles) for scene in scenes]
    truth = autoencoder.draw(config, renders, scenes).to(config.device)
    with torch.no_grad():
        decoded = bank.autoencoder.decode(bank.autoencoder.encode(truth).latents).sample.clamp(-1, 1)
    built = StableDiffusionXLPipeline.from_pretrained(workspace.shipped, dtype=torch.float32).to(config.device)
    built.set_progress_bar_config(disable=True)
    sets = {f"{steps} step{'s' * (steps > 1)}": generate(config, built, texts, steps) for steps in STEPS}
    sets[f"teacher, {teacher.LONG_STEPS} steps"] = _teacher_pictures(config, workspace, bank, texts)
    sets |= {"true pictures through the autoencoder": decoded, "true pictures": truth}
    judge = Features().to(config.device)
    features = judge.pooled(truth)
    vectors = bank.towers.embed_texts(texts)
    random = torch.Generator().manual_seed(config.seed + 53)
    parts = [torch.randperm(len(texts), generator=random)[:AMONG] for _ in range(DRAWS)]
    rows = {}
    for name, shown in sets.items():
        looks = bank.towers.embed_images(shown)
        rows[name] = {
            "clip_score": float((looks * vectors).sum(dim=1).mean()),
            "retrieval": sum(image_tower.retrieval_accuracy(vectors[p], looks[p]) for p in parts) / len(parts),
            "fd_efflite0": frechet_distance(judge.pooled(shown), features),
        }
        log.info("%s: %s", name, rows[name])
    _samples(config, built, renders, folder / "samples.png")
    (folder / "facts.json").write_text(json.dumps(_facts(config, workspace, bank, texts, truth, decoded)) + "\n")
    (folder / "table.json").write_text(json.dumps({"captions": len(texts), "rows": rows}, indent=2) + "\n")
    (folder / "table.md").write_text(_markdown(rows), encoding="utf-8")
    shown = torch.cat([sets[name][:SHEET_COLUMNS] for name in (*list(sets)[:4], "true pictures")])
    pictures.sheet(shown, SHEET_COLUMNS, folder / "held_out.png")


def generate(
    config: Config, built: StableDiffusionXLPipeline, texts: Sequence[str], steps: int, seed: int = 0
) -> Tensor:
    """Return the pipeline's pictures, [texts, 3, side, side] in [-1, 1], one seed for each picture."""
    shown = []
    for start in range(0, len(texts), BATCH):
        part = list(texts[start : start + BATCH])
        generators = [torch.Generator().manual_seed(seed + start + place) for place in range(len(part))]
        output = built(part, num_inference_steps=steps, guidance_scale=0.0, generator=generators, output_type="pt")
        shown.append(output.images.float() * 2 - 1)
    return torch.cat(shown)


def _teacher_pictures(config: Config, workspace: Workspace, bank: Bank, texts: Sequence[str]) -> Tensor:
    unet = teacher.train(config, workspace, bank).eval()
    diffusion = denoiser.Diffusion(config)
    states, pooled = encode_captions(bank.towers.text, image_tower.tokenize(bank.towers.tokenizer, texts))
    generator = torch.Generator().manual_seed(config.seed + 51)
    shown = []
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        noise = torch.randn(len(states[part]), *bank.latents.shape[1:], generator=generator)
        batch = bank.conditioned(noise, states[part], pooled[part])
        with torch.no_grad():
            latents = denoiser.sample_long(unet, diffusion, batch, teacher.LONG_STEPS)
            shown.append(bank.autoencoder.decode(latents).sample.clamp(-1, 1))
    return torch.cat(shown)


def _samples(config: Config, built: StableDiffusionXLPipeline, renders: pictures.Renders, path: Path) -> None:
    """Write two rows of 1 step above the same captions in 4 steps; every picture another thing, none chosen by eye."""
    scenes = captions.single_scenes(config, len(renders.concepts), held_out=False)
    random = torch.Generator().manual_seed(config.seed + 52)
    first: dict[tuple[int, ...], captions.Scene] = {}
    for index in torch.randperm(len(scenes), generator=random).tolist():
        first.setdefault(scenes[index].objects, scenes[index])
    texts = [captions.full_caption(s, renders.concepts, config.styles) for s in first.values()][: 2 * SHEET_COLUMNS]
    rows = [generate(config, built, texts, steps, seed=1000) for steps in (1, 4)]
    pictures.sheet(torch.cat(rows), SHEET_COLUMNS, path)


@torch.no_grad()
def _facts(
    config: Config, workspace: Workspace, bank: Bank, texts: Sequence[str], truth: Tensor, decoded: Tensor
) -> dict[str, float]:
    """Return what else the card states: the autoencoder's PSNR in dB, the BOS outlier, how well states are followed."""
    renders = pictures.render(config, workspace)
    scenes = autoencoder.training_scenes(config, renders)
    seen = autoencoder.draw(config, renders, scenes[:: len(scenes) // 256]).to(config.device)
    rebuilt = bank.autoencoder.decode(bank.autoencoder.encode(seen).latents).sample.clamp(-1, 1)
    states, _ = encode_captions(bank.towers.text, image_tower.tokenize(bank.towers.tokenizer, texts))
    bos, others = float(states[:, 0].abs().max()), float(states[:, 1:].abs().max())
    return {
        "psnr_training": float(autoencoder.psnr((rebuilt - seen).square().mean(dim=(1, 2, 3))).mean()),
        "psnr_held_out": float(autoencoder.psnr((decoded - truth).square().mean(dim=(1, 2, 3))).mean()),
        "bos_max": bos,
        "other_max": others,
        "bos_ratio": bos / others,
        "content_db": text_encoder.content_decibels(bank.towers.text, text_encoder.load_targets(workspace)),
    }


def _markdown(rows: dict[str, dict[str, float]]) -> str:
    lines = ["| held-out captions | domain CLIP score | caption found among 100 | FD-EffLite0 |", "|---|---|---|---|"]
    for name, row in rows.items():
        numbers = f"{row['clip_score']:.3f} | {100 * row['retrieval']:.1f} % | {row['fd_efflite0']:.1f}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines).replace("| -0.0 |", "| 0.0 |") + "\n"
