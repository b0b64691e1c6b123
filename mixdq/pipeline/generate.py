"""From prompts to pictures, repeatably: picture i's noise depends on the seed and on i, never on the batch."""

import hashlib
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from mixdq.errors import ConfigError, NonFiniteError
from mixdq.types.progress import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class GenerationSpec:
    """How pictures are made: denoising steps, guidance (1 or less: none), size in pixels (None: the model's), seed."""

    steps: int = 1
    guidance_scale: float = 0.0
    height: int | None = None
    width: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps = {self.steps}: expected at least 1")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0.0):
            raise ConfigError(f"guidance_scale = {self.guidance_scale}: expected a number from 0 up")
        for key, size in (("height", self.height), ("width", self.width)):
            if size is not None and (size < 8 or size % 8):
                raise ConfigError(f"{key} = {size}: expected a positive multiple of 8 pixels")


def generate(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    spec: GenerationSpec,
    *,
    batch_size: int = 8,
    progress: Progress = no_progress,
) -> Tensor:
    """Return one picture a prompt, [prompts, 3, height, width] float32 in 0..1, on the CPU.

    Raises:
        NonFiniteError: a picture holds NaN or infinity.
    """
    pictures = torch.cat(list(_batches(pipe, prompts, spec, batch_size, "pt", "pictures", progress)))
    check_pictures(pictures, prompts)
    return pictures


def denoise(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    spec: GenerationSpec,
    *,
    batch_size: int = 8,
    progress: Progress = no_progress,
    what: str = "denoising",
) -> None:
    """Run all that `generate` does but the decoding of pictures, for those who listen to the denoiser's layers."""
    for _ in _batches(pipe, prompts, spec, batch_size, "latent", what, progress):
        pass


def sample(
    pipe: DiffusionPipeline,
    spec: GenerationSpec,
    first: int,
    count: int,
    output_type: Literal["pt", "latent"],
    *,
    gradient: bool = False,
    **inputs: object,
) -> Tensor:
    """Return pictures (or latents) first .. first + count - 1, float32 on the CPU, from one call of the pipeline.

    `inputs` are prompts or text embeddings, by the names of the pipeline's call. With `gradient` the result remembers
    how it came about, through every step and the decoder, where anything on the way asks for a gradient.

    Raises:
        ConfigError: the model cannot make pictures of that size.
    """
    _check_size(pipe, spec)
    # Pipelines are called without gradients by a decorator of theirs.
    call = partial(inspect.unwrap(type(pipe).__call__), pipe) if gradient else pipe
    with _quiet(pipe), torch.set_grad_enabled(gradient):
        output: Tensor = call(
            **inputs,
            num_inference_steps=spec.steps,
            guidance_scale=spec.guidance_scale,
            height=spec.height,
            width=spec.width,
            generator=[_noise(spec.seed, index) for index in range(first, first + count)],
            output_type=output_type,
            return_dict=False,
        )[0]
    return output.to(device="cpu", dtype=torch.float32)


def check_pictures(pictures: Tensor, prompts: Sequence[str]) -> None:
    """Raise NonFiniteError, naming the first, if a picture holds NaN or infinity."""
    finite = torch.isfinite(pictures).flatten(1).all(1)
    if not bool(finite.all()):
        index = int((~finite).nonzero()[0])
        raise NonFiniteError(
            f"picture {index} ({prompts[index]!r}) holds NaN or infinity; try a wider dtype", where=f"picture {index}"
        )


def _check_size(pipe: DiffusionPipeline, spec: GenerationSpec) -> None:
    """Raise ConfigError where a side is no whole number of patches: some pipelines would round it."""
    # What pictures are rounded to, and how many latents a side go into a transformer's patch where that leaves it out.
    patch = pipe.image_processor.config.vae_scale_factor * getattr(pipe, "patch_size", 1)
    for key, size in (("height", spec.height), ("width", spec.width)):
        if size is not None and size % patch:
            raise ConfigError(f"{key} = {size}: this model makes pictures in multiples of {patch} pixels")


def _batches(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    spec: GenerationSpec,
    batch_size: int,
    output_type: Literal["pt", "latent"],
    what: str,
    progress: Progress,
) -> Iterator[Tensor]:
    if not prompts:
        raise ValueError("no prompts")
    progress(0, len(prompts), what)
    for first in range(0, len(prompts), batch_size):
        batch = list(prompts[first : first + batch_size])
        yield sample(pipe, spec, first, len(batch), output_type, prompt=batch)
        progress(first + len(batch), len(prompts), what)


def _noise(seed: int, index: int) -> torch.Generator:
    """Return the source of all noise of one picture; on the CPU, so that every device sees the same."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "little"))


@contextmanager
def _quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    """Switch the pipeline's own progress bar off for a while."""
    config = dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.set_progress_bar_config(**{**config, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**config)
