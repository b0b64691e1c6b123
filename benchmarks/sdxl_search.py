"""What a sensitivity table would cost at SDXL's shape: some passes timed, the rest multiplied out and said so."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionXLPipeline
from rich.table import Table
from torch import Tensor

from benchmarks import sdxl
from benchmarks.case import SIZES, random_unet
from benchmarks.conversion import record_of, table_of
from benchmarks.measuring import seconds_of
from mixdq.evaluation.memory import peak_resident_bytes, reset_peak_resident, resident_bytes
from mixdq.pipeline.families.sdxl import SDXLFamily
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.trace import record_calls, regenerate, replay
from mixdq.sensitivity.measure import METRIC_OF
from mixdq.sensitivity.products import Products
from mixdq.sensitivity.scorer import TrialScorer
from mixdq.sensitivity.sketch import VECTORS_A_ROUND
from mixdq.sensitivity.state import EXACT_SHARE
from mixdq.sensitivity.trials import by_metric, list_trials
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.plan import ACTIVATION_CHOICES, WEIGHT_CHOICES

GIB = 2**30
TRIALS = 5
"""How many trials of each metric are timed, the first of each fifth; all others are taken to be like them."""
PROMPTS, VECTORS = 4, 8
"""What a table is made from by default: with four prompts eight vectors are enough."""
LATENT_PIXELS = 8
"""Height and width of what the decoder makes of one latent pixel."""


class RandomText(SDXLFamily):
    """SDXL without its text encoders."""

    def encode(self, pipe: DiffusionPipeline, prompts: Sequence[str], guidance_scale: float) -> dict[str, Tensor]:
        """Return embeddings of SDXL's shape that mean nothing."""
        inputs = sdxl.inputs(len(prompts), 8, pipe.unet.dtype)
        text, added = inputs["encoder_hidden_states"], inputs["added_cond_kwargs"]
        assert isinstance(text, Tensor)
        assert isinstance(added, Mapping)
        return {"prompt_embeds": text, "pooled_prompt_embeds": added["text_embeds"]}


def cost(size: str, side: int, prompts: int, *, checkpointing: bool = False) -> dict[str, float]:
    """Return seconds and bytes for so many prompts in one batch, measured, and the hours of whole tables, extrapolated.

    Pictures are decoded, forth and back, by a decoder of SDXL's shape; "sqnr" ends at the denoiser.
    """
    pipe = random_pipeline(size)
    layers = table_of(pipe.unet)
    spec = GenerationSpec(height=LATENT_PIXELS * side, width=LATENT_PIXELS * side)
    trace = record_calls(pipe, RandomText(), [f"{number}" for number in range(prompts)], spec, batch_size=prompts)
    scorer = TrialScorer(
        pipe=pipe,
        denoiser=pipe.unet,
        layers={layer.name: layer for layer in layers},
        record=record_of(layers),
        trace=trace,
        ssim_window=11,
        symmetric=True,
        rounding="nearest",
    )
    row: dict[str, float] = {"layers": len(layers), "prompts": prompts}
    row["call_seconds"] = seconds_of(lambda: [replay(pipe.unet, call) for call in trace.calls])
    row["picture_seconds"] = seconds_of(lambda: regenerate(pipe, trace))
    row["resident_bytes"] = resident_bytes() or 0
    hours = dict.fromkeys(("published", "exact", "sketch"), 0.0)
    share = PROMPTS / prompts / 3600
    for metric, trials in by_metric(list_trials(layers, WEIGHT_CHOICES, ACTIVATION_CHOICES, METRIC_OF)).items():
        scorer(trials[0])
        some = trials[:: -(-len(trials) // TRIALS)]
        trial = statistics.fmean(seconds_of(partial(scorer, one)) for one in some)
        reset_peak_resident()
        products = Products(trials, scorer, metric, checkpointing=checkpointing)
        vectors = seconds_of(partial(products, 0, range(VECTORS_A_ROUND)))
        row |= {
            f"{metric}_trials": len(trials),
            f"{metric}_exact_trial_seconds": trial,
            f"{metric}_vector_seconds": vectors / VECTORS_A_ROUND,
            f"{metric}_peak_bytes": peak_resident_bytes(),
        }
        whole = row["call_seconds"] if metric == "sqnr" else row["picture_seconds"]
        hours["published"] += share * len(trials) * whole
        hours["exact"] += share * len(trials) * trial
        hours["sketch"] += share * VECTORS / VECTORS_A_ROUND * vectors
    hours["hybrid"] = hours["sketch"] + EXACT_SHARE * hours["exact"]
    return row | {f"{method}_hours": value for method, value in hours.items()}


def random_pipeline(size: str) -> StableDiffusionXLPipeline:
    """Return a pipeline of SDXL's shape in bfloat16 whose weights are random; it has no text encoders."""
    widths = (128, 256, 512, 512) if size != "smoke" else (32, 32, 32, 32)
    decoder = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=2,
        latent_channels=4,
    )
    # Module by module, for diffusers warns when it is asked itself.
    for module in decoder.children():
        module.to(torch.bfloat16)
    pipe = StableDiffusionXLPipeline(
        vae=decoder.eval(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=random_unet(*SIZES[size], torch.bfloat16),
        scheduler=tiny_sdxl_pipeline().scheduler,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shown(row: Mapping[str, float], size: str) -> Table:
    """Return the numbers as a table."""
    prompts = f"{row['prompts']} prompt{'s' if row['prompts'] > 1 else ''}"
    made = Table(title=f"SDXL, {size}, {prompts}; hours for {PROMPTS}, extrapolated")
    for name in ("", "value"):
        made.add_column(name, justify="right" if name else "left")
    for name, value in row.items():
        made.add_row(name.replace("_", " "), f"{value / GIB:.2f} GiB" if name.endswith("bytes") else f"{value:.4g}")
    return made
