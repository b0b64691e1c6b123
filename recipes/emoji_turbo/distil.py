"""Stage 5, distillation to 4, 2 and 1 steps: regression onto endpoints, judged as pictures.

Half of a batch starts at pure noise. The other half walks as the shipped scheduler does: the student's own picture of
one step, noised again to one of the later timesteps, from which it must still reach the endpoint; so the student
learns to mend its own errors, not a teacher's. The endpoint is the scene that the caption and the noise mean (see
`bank`), which the teacher was trained towards as well. The loss reads decoded pictures: tones, edges, and shallow
EfficientNet-Lite0 features, beside the latents themselves.
"""

import copy
import logging

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from recipes.emoji_turbo import denoiser, pictures, teacher, training
from recipes.emoji_turbo.bank import Bank, Batch
from recipes.emoji_turbo.config import Config, Workspace
from recipes.emoji_turbo.features import Features

log = logging.getLogger(__name__)

# The scheduler's timesteps after the first, for 2 and 4 steps.
LATER = torch.tensor([759, 499, 499, 259])
LATENT_WEIGHT, PIXEL_WEIGHT, EDGE_WEIGHT, FEATURE_WEIGHT = 1.0, 1.0, 1.0, 0.25


def train(config: Config, workspace: Workspace, bank: Bank | None = None) -> UNet2DConditionModel:
    """Return the few-step student, which takes scaled text states."""
    folder = workspace.stage("distil")
    bank = bank or Bank(config, workspace)
    student = copy.deepcopy(teacher.train(config, workspace, bank))
    diffusion = denoiser.Diffusion(config)
    features = Features().to(config.device)
    decoder = bank.autoencoder.decoder

    def step(_: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch, scenes = bank.draw(generator, config.distil.batch // config.shards)
        noisy, times = _starts(student, diffusion, batch, generator)
        latents = diffusion.clean(noisy, diffusion.predict(student, noisy, times, batch), times)
        wanted = pictures.to_signed(bank.pictures[scenes]).to(config.device)
        drawn = decoder(latents)
        pixel = functional.l1_loss(drawn, wanted)
        edge = sum((drawn - wanted).diff(dim=dim).abs().mean() for dim in (-1, -2))
        feature = features.loss(drawn, wanted)
        latent = functional.smooth_l1_loss(latents, bank.latents[scenes].to(config.device), beta=0.2)
        loss = LATENT_WEIGHT * latent + PIXEL_WEIGHT * pixel + EDGE_WEIGHT * edge + FEATURE_WEIGHT * feature
        parts = {"latent": latent, "pixel": pixel, "feature": feature}
        return loss, {name: float(part.detach()) for name, part in parts.items()}

    def watch(done: int, averages: training.Averages) -> None:
        shown = copy.deepcopy(student).eval()
        averages.copy_to(shown)
        teacher.sheet(config, bank, shown, folder / "sheet.png")

    training.train(
        student,
        config.distil,
        folder,
        step,
        seed=config.seed + 40,
        decay=0.99,
        on_checkpoint=watch,
        shards=config.shards,
    )
    return student


def _starts(
    student: UNet2DConditionModel, diffusion: denoiser.Diffusion, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return inputs and timesteps: noise at the last one for the first half, the student's own path for the rest."""
    count = len(batch.noise)
    half = count // 2
    device = batch.noise.device
    times = torch.full((count,), teacher.LAST, device=device)
    rest = batch.part(slice(half, None))
    with torch.no_grad():
        first = diffusion.clean(rest.noise, diffusion.predict(student, rest.noise, times[half:], rest), times[half:])
    later = LATER[torch.randint(len(LATER), (count - half,), generator=generator)].to(device)
    fresh = torch.randn(rest.noise.shape, generator=generator).to(device)
    noisy = torch.cat([batch.noise[:half], diffusion.corrupt(first, fresh, later)])
    return noisy, torch.cat([times[:half], later])
