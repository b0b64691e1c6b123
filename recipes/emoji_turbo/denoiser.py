"""The UNet as both training stages use it: velocity prediction, the scheduler's alphas, exact folding, sampling."""

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from recipes.emoji_turbo import shapes
from recipes.emoji_turbo.bank import Batch
from recipes.emoji_turbo.config import Config


class Diffusion:
    """x_t = signal[t] x_0 + noise[t] e, with v = signal e - noise x_0 (arXiv 2202.00512, appendix D)."""

    def __init__(self, config: Config) -> None:
        alphas = shapes.scheduler().alphas_cumprod.to(config.device)
        self.signal = alphas.sqrt().view(-1, 1, 1, 1)
        self.noise = (1 - alphas).sqrt().view(-1, 1, 1, 1)
        side = float(config.image_size)
        # What the pipeline passes by default: original size, crop corner, target size.
        self.time_ids = torch.tensor([side, side, 0.0, 0.0, side, side], device=config.device)

    def corrupt(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_t."""
        return self.signal[timesteps] * latents + self.noise[timesteps] * noise

    def velocity(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return v at x_t."""
        return self.signal[timesteps] * noise - self.noise[timesteps] * latents

    def clean(self, noisy: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
        """Return x_0 = signal x_t - noise v."""
        return self.signal[timesteps] * noisy - self.noise[timesteps] * velocity

    def predict(self, unet: UNet2DConditionModel, noisy: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        """Return the UNet's velocity for the batch's conditions."""
        added = {"text_embeds": batch.pooled, "time_ids": self.time_ids.expand(len(noisy), -1)}
        # bfloat16 pays on a GPU; on the CPUs we measured, small convolutions are faster in float32.
        with torch.autocast("cuda", torch.bfloat16, enabled=noisy.is_cuda):
            velocity: Tensor = unet(noisy, timesteps, batch.states, added_cond_kwargs=added).sample
        return velocity.float()


@torch.no_grad()
def fold(unet: UNet2DConditionModel, scale: Tensor) -> None:
    """Make a UNet trained on `states * scale` take plain states: W (s x) = (W s) x."""
    for name, module in unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            module.weight.mul_(scale.to(module.weight.device))


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel, diffusion: Diffusion, batch: Batch, steps: int, generator: torch.Generator
) -> Tensor:
    """Return latents after `steps` steps of the shipped scheduler, from the batch's noise."""
    scheduler = shapes.scheduler()
    scheduler.set_timesteps(steps)
    latents = batch.noise
    for timestep in scheduler.timesteps:
        times = timestep.to(latents.device).expand(len(latents))
        velocity = diffusion.predict(unet, latents, times, batch)
        latents = scheduler.step(velocity, timestep, latents, generator=generator).prev_sample
    return latents


@torch.no_grad()
def sample_long(unet: UNet2DConditionModel, diffusion: Diffusion, batch: Batch, steps: int) -> Tensor:
    """Return latents after `steps` deterministic DDIM steps: how the undistilled teacher is sampled."""
    scheduler = DDIMScheduler.from_config(
        shapes.scheduler().config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(steps)
    latents = batch.noise
    for timestep in scheduler.timesteps:
        times = timestep.to(latents.device).expand(len(latents))
        latents = scheduler.step(diffusion.predict(unet, latents, times, batch), timestep, latents).prev_sample
    return latents
