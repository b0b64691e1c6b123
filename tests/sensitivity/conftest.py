from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mixdq.calibration.collect import calibrate
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.pipeline.trace import record_calls
from mixdq.sensitivity.products import Products
from mixdq.sensitivity.resume import Floats
from mixdq.sensitivity.scorer import TrialScorer
from mixdq.sensitivity.trials import Trial, list_trials

PROMPTS = ["a cat", "a dog at sea", "a red boat"]


@pytest.fixture
def build_scorer() -> Callable[..., TrialScorer]:
    """What scores trials of a pipeline, built new, on three prompts."""

    def build(pipeline, spec: GenerationSpec, batch_size: int = 8) -> TrialScorer:
        pipe = pipeline()
        family = find_family(pipe)
        table = list_layers(pipe, family, spec, model="tiny")
        return TrialScorer(
            pipe=pipe,
            denoiser=family.denoiser(pipe),
            layers={layer.name: layer for layer in table},
            record=calibrate(pipe, family, table, PROMPTS, spec),
            trace=record_calls(pipe, family, PROMPTS, spec, batch_size=batch_size),
            ssim_window=5,
            symmetric=True,
            rounding="nearest",
        )

    return build


@pytest.fixture
def eight_bit_trials() -> Callable[[TrialScorer, str], tuple[Trial, ...]]:
    """Every layer's weight and input at 8 bits, where first order is good, by one metric."""

    def trials(scorer: TrialScorer, metric: str) -> tuple[Trial, ...]:
        widths, metrics = {"content": (8,), "quality": (8,)}, {"content": (metric,), "quality": (metric,)}
        return list_trials(scorer.layers.values(), widths, widths, metrics)

    return trials


@pytest.fixture
def products_of() -> Callable[..., Floats]:
    """The products of the first vectors on the whole recorded run."""

    def compute(trials: Sequence[Trial], scorer: TrialScorer, metric: str, count: int) -> Floats:
        products = Products(trials, scorer, metric)
        return np.concatenate([products(part, range(count)) for part in range(products.parts)], axis=1)

    return compute
