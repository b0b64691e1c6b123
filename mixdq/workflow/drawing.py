"""What evaluation asks of a pipeline: pictures, the denoiser's first outputs, the metrics that fit it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from mixdq.errors import ArtifactFormatError, ConfigError
from mixdq.metrics.base import METRICS, Metric
from mixdq.metrics.clip_score import ClipScore
from mixdq.pipeline.family import find_family
from mixdq.pipeline.trace import Trace, record_calls
from mixdq.store.artifact import atomic_write
from mixdq.workflow.session import Session

if TYPE_CHECKING:
    from mixdq.pipeline.family import Pipeline

IMAGE_TOWER = "image_tower"
"""A folder beside a pipeline with a vision tower trained against its text encoder: the model's own CLIP score."""


def draw(session: Session, pipe: "Pipeline", prompts: Sequence[str]) -> Trace:
    """Return a trace of `pipe`, floating-point or quantized, on `prompts`, with the run's settings."""
    return record_calls(
        pipe,
        find_family(pipe),
        prompts,
        session.spec,
        batch_size=session.config.generation.batch_size,
        progress=session.progress,
    )


def first_outputs(trace: Trace) -> Tensor:
    """Return the denoiser's outputs at the first step, [prompts, ...].

    Later steps start from what the steps before made of the picture, so they cannot be compared one to one.
    """
    firsts = []
    for batch in trace.batches:
        output = batch.calls[0].output
        # Under guidance the call holds the empty prompt's half first.
        firsts.append(output[-batch.count :].to(torch.float32))
    return torch.cat(firsts)


def read_outputs(path: Path) -> Tensor:
    """Return what was saved of `first_outputs`; ArtifactFormatError where it cannot be read."""
    try:
        return safetensors.torch.load_file(path)["outputs"]
    except (SafetensorError, KeyError, FileNotFoundError) as error:
        raise ArtifactFormatError(f"{path}: not readable ({error}); delete {path.parent} and run again") from error


def metrics_for(session: Session, pipe: "Pipeline") -> list[Metric]:
    """Return the metrics of pictures that the settings name and that this pipeline has a model for.

    Raises:
        ConfigError: there is no metric of a name.
    """
    chosen: list[Metric] = []
    for name in session.config.evaluation.metrics:
        if name == "clip_score":
            tower = Path(session.config.model.path) / IMAGE_TOWER
            if session.config.evaluation.clip_model is not None:
                chosen.append(ClipScore.from_pretrained(session.config.evaluation.clip_model))
            elif tower.is_dir():
                chosen.append(ClipScore.from_pipeline(pipe, tower))
        elif name not in METRICS:
            known = ", ".join([*METRICS, "clip_score"])
            raise ConfigError(f"evaluation.metrics: there is no {name!r}; expected some of {known}")
        elif name not in ("ssim", "psnr", "sqnr"):
            chosen.append(METRICS[name])
    # These are in every table; SQNR is taken of the denoiser's outputs, not of pictures.
    return [METRICS["ssim"], METRICS["psnr"], *chosen]


@contextmanager
def halved(pipe: "Pipeline") -> Iterator[None]:
    """Hold every component whose values all fit float16 exactly as float16, for saving; put them back afterwards.

    A float16 checkpoint that was loaded in float32 is thus saved at its own size, and nothing is lost. The denoiser,
    which may be quantized, is left alone.
    """
    denoiser = getattr(pipe, find_family(pipe).denoiser_name)
    parts = [one for one in pipe.components.values() if isinstance(one, nn.Module) and one is not denoiser]
    exact = [part for part in parts if all(_fits_half(one) for one in part.state_dict().values())]
    try:
        for part in exact:
            _cast(part, torch.float16)
        yield
    finally:
        for part in exact:
            _cast(part, torch.float32)


def open_in_float32(folder: Path) -> None:
    """Have every part of a saved pipeline opened in float32 where no type is asked for, whatever it is stored in.

    diffusers does so with its own models, transformers takes the stored type: the two would not fit together.
    """
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("dtype") in ("float16", "bfloat16"):
            atomic_write(path, (json.dumps({**config, "dtype": "float32"}, indent=2) + "\n").encode())


@contextmanager
def silent() -> Iterator[None]:
    """Switch the libraries' bars for saving off; on a terminal the command line has one of its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _cast(part: nn.Module, dtype: torch.dtype) -> None:
    # Not `part.to(dtype)`: diffusers and transformers have warnings about that, which do not hold for a round trip.
    for tensor in [*part.parameters(), *part.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def _fits_half(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    return tensor.dtype == torch.float32 and bool(torch.equal(tensor, tensor.to(torch.float16).to(torch.float32)))
