"""A tiny model on disk, and the desk that a process with that model has."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from mixdq.calibration.collect import calibrate
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.pipeline.load import load_pipeline
from mixdq.pipeline.trace import record_calls
from mixdq.sensitivity.desk import Desk
from mixdq.sensitivity.engines.worker import ModelSource
from mixdq.sensitivity.measure import METRIC_OF
from mixdq.sensitivity.scorer import TrialScorer
from mixdq.sensitivity.trials import Trial, by_metric, list_trials
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.plan import ACTIVATION_CHOICES, WEIGHT_CHOICES


@dataclass(frozen=True)
class Case:
    """A model, where it lies, and what is to be scored and sketched."""

    pipe: DiffusionPipeline
    source: ModelSource
    scorer: TrialScorer
    desk: Desk
    trials: tuple[Trial, ...]


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A case with every trial of the published method."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sdxl_pipeline().save_pretrained(folder)
    return opened(folder)


def opened(folder: Path) -> Case:
    pipe = load_pipeline(folder)
    family, spec, prompts = find_family(pipe), GenerationSpec(), ["a cat", "a dog at sea"]
    table = list_layers(pipe, family, spec, model=str(folder))
    scorer = TrialScorer(
        pipe=pipe,
        denoiser=pipe.unet,
        layers={layer.name: layer for layer in table},
        record=calibrate(pipe, family, table, prompts, spec),
        trace=record_calls(pipe, family, prompts, spec),
        ssim_window=11,
        symmetric=True,
        rounding="nearest",
    )
    source = ModelSource(path=str(folder), dtype=torch.float32, device="cpu")
    trials = list_trials(table, WEIGHT_CHOICES, ACTIVATION_CHOICES, METRIC_OF)
    return Case(pipe, source, scorer, Desk(scorer, by_metric(trials)), trials)
