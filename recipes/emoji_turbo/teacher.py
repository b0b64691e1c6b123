"""Stage 4, the teacher: an ordinary diffusion model on the latents, its timesteps leaning towards pure noise.

A full caption means one picture, so most of what few steps need is learnt here already: at the last timestep the
input is noise alone and the prediction is the picture.
"""

import logging
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from recipes.emoji_turbo import autoencoder, denoiser, pictures, shapes, training
from recipes.emoji_turbo.bank import Bank
from recipes.emoji_turbo.config import Config, Workspace

log = logging.getLogger(__name__)

LAST = 999
# Share of a batch at the last timestep; the others follow a density that grows with the noise.
SHARE_AT_LAST = 0.45
SHEET_COUNT = 32
LONG_STEPS = 25


def train(config: Config, workspace: Workspace, bank: Bank | None = None) -> UNet2DConditionModel:
    """Return the teacher, which takes scaled text states; a sheet of samples is written at every checkpoint."""
    folder = workspace.stage("teacher")
    bank = bank or Bank(config, workspace)
    torch.manual_seed(config.seed + 30)
    unet = shapes.unet(config).to(config.device)
    diffusion = denoiser.Diffusion(config)

    def step(_: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch, scenes = bank.draw(generator, config.teacher.batch // config.shards)
        latents = bank.latents[scenes].to(config.device)
        times = timesteps(len(batch.noise), generator).to(config.device)
        noisy = diffusion.corrupt(latents, batch.noise, times)
        predicted = diffusion.predict(unet, noisy, times, batch)
        error = (predicted - diffusion.velocity(latents, batch.noise, times)).square().mean(dim=(1, 2, 3))
        return error.mean(), {"at_last": float(error[times == LAST].detach().mean().nan_to_num(0.0))}

    def watch(done: int, averages: training.Averages) -> None:
        shown = shapes.unet(config).to(config.device).eval()
        averages.copy_to(shown)
        bank.autoencoder = autoencoder.load(config, workspace)
        sheet(config, bank, shown, folder / "sheet.png")

    training.train(
        unet,
        config.teacher,
        folder,
        step,
        seed=config.seed + 30,
        decay=0.995,
        on_checkpoint=watch,
        shards=config.shards,
    )
    sheet(config, bank, unet, folder / "sheet.png", long=True)
    return unet


def timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Return random timesteps: `LAST` for a share of them, else with a density proportional to the timestep."""
    spread = (LAST * torch.rand(count, generator=generator).sqrt()).long()
    return torch.where(torch.rand(count, generator=generator) < SHARE_AT_LAST, LAST, spread)


@torch.no_grad()
def sheet(config: Config, bank: Bank, unet: UNet2DConditionModel, path: Path, *, long: bool = False) -> None:
    """Write one row each of 1 step, 2, 4 (and, where asked, 25 of DDIM) above the true pictures."""
    generator = torch.Generator().manual_seed(config.seed + 31)
    diffusion = denoiser.Diffusion(config)
    batch, scenes = bank.draw(generator, SHEET_COUNT)
    rows = [denoiser.sample(unet, diffusion, batch, steps, generator) for steps in (1, 2, 4)]
    if long:
        rows.append(denoiser.sample_long(unet, diffusion, batch, LONG_STEPS))
    decoded = [bank.autoencoder.decode(latents).sample.cpu() for latents in rows]
    decoded.append(pictures.to_signed(bank.pictures[scenes]))
    half = SHEET_COUNT // 2
    shown = [part for start in (0, half) for rows_of in decoded for part in rows_of[start : start + half]]
    pictures.sheet(torch.stack(shown), half, path, zoom=1)
