"""What a sensitivity table would cost at SDXL's shape: single passes timed, the rest multiplied out and said so."""

import time
from collections.abc import Mapping

import torch
from rich.table import Table

from benchmarks import sdxl
from benchmarks.case import SIZES, random_unet
from benchmarks.conversion import record_of, table_of
from mixdq.evaluation.memory import peak_resident_bytes, reset_peak_resident, resident_bytes
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.trace import DenoiserCall, Trace, TraceBatch, replay
from mixdq.sensitivity.measure import METRIC_OF
from mixdq.sensitivity.products import Products
from mixdq.sensitivity.scorer import TrialScorer
from mixdq.sensitivity.sketch import VECTORS_A_ROUND
from mixdq.sensitivity.state import EXACT_SHARE
from mixdq.sensitivity.trials import list_trials
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.plan import ACTIVATION_CHOICES, WEIGHT_CHOICES

GIB = 2**30
TRIALS = 8
"""How many trials are timed, from the first layer to the last, and all others taken to be like them."""
PROMPTS, VECTORS = 4, 8
"""What a table is made from by default: with four prompts eight vectors are enough."""


def cost(size: str, side: int, *, checkpointing: bool = False) -> dict[str, float]:
    """Return seconds and bytes for one prompt, measured, and the hours of whole tables for `PROMPTS`, extrapolated.

    The decoder, through which the pictures' vectors go, is not part of it.
    """
    model = random_unet(*SIZES[size], torch.bfloat16)
    layers = table_of(model)
    arguments = sdxl.inputs(1, side, torch.bfloat16)
    call = DenoiserCall(args=(), kwargs=arguments, output=torch.zeros(1, 4, side, side))
    call = DenoiserCall(args=(), kwargs=arguments, output=replay(model, call))
    pipe = tiny_sdxl_pipeline()
    pipe.register_modules(unet=model)
    batch = TraceBatch(first=0, count=1, embeddings={}, calls=(call,))
    scorer = TrialScorer(
        pipe=pipe,
        denoiser=model,
        layers={layer.name: layer for layer in layers},
        record=record_of(layers),
        trace=Trace(spec=GenerationSpec(), batches=(batch,), pictures=torch.zeros(1, 3, 8, 8)),
        ssim_window=11,
        symmetric=True,
        rounding="nearest",
    )
    trials = list_trials(layers, WEIGHT_CHOICES, ACTIVATION_CHOICES, METRIC_OF)
    probed = list_trials(layers, WEIGHT_CHOICES, ACTIVATION_CHOICES, dict.fromkeys(METRIC_OF, ("sqnr",)))
    forward = _seconds(lambda: replay(model, call))
    scorer(probed[0])
    some = probed[:: len(probed) // TRIALS]
    trial = sum(_seconds(lambda one=one: scorer(one)) for one in some) / len(some)
    before = resident_bytes() or 0
    reset_peak_resident()
    products = Products(probed, scorer, "sqnr", checkpointing=checkpointing)
    products(0, range(2))
    peak = peak_resident_bytes() or 0
    one, three = (_seconds(lambda count=count: products(0, range(count))) for count in (1, 3))
    vector = (three - one) / 2
    sketch = len(set(METRIC_OF.values())) * VECTORS / VECTORS_A_ROUND * (one + (VECTORS_A_ROUND - 1) * vector)
    exact = EXACT_SHARE * len(trials) * trial
    return {
        "layers": len(layers),
        "trials": len(trials),
        "forward_seconds": forward,
        "exact_trial_seconds": trial,
        "vector_seconds": vector,
        "resident_before": before,
        "peak_bytes": peak,
        "published_hours": PROMPTS * len(trials) * forward / 3600,
        "exact_hours": PROMPTS * len(trials) * trial / 3600,
        "sketch_hours": PROMPTS * sketch / 3600,
        "hybrid_hours": PROMPTS * (sketch + exact) / 3600,
    }


def shown(row: Mapping[str, float], size: str) -> Table:
    """Return the numbers as a table."""
    made = Table(title=f"SDXL's UNet, {size}, bfloat16, one prompt; hours are extrapolated to {PROMPTS}")
    for name in ("", "value"):
        made.add_column(name, justify="right" if name else "left")
    for name, value in row.items():
        bytes_ = name in ("resident_before", "peak_bytes")
        made.add_row(name.replace("_", " "), f"{value / GIB:.2f} GiB" if bytes_ else f"{value:.4g}")
    return made


def _seconds(thing: object) -> float:
    assert callable(thing)
    started = time.perf_counter()
    thing()
    return time.perf_counter() - started
