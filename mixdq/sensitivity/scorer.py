"""Exact scores: a trial is scored by replaying a recorded run with one layer quantized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from mixdq.errors import NonFiniteError
from mixdq.metrics.base import METRICS
from mixdq.metrics.sqnr import sqnr
from mixdq.metrics.ssim import ssim
from mixdq.pipeline.family import Pipeline
from mixdq.pipeline.prefix import Prefix, record_prefix, resumed
from mixdq.pipeline.trace import Trace, regenerate_batch, replay
from mixdq.quant.simulate_plan import simulated_spec
from mixdq.sensitivity.trials import Trial
from mixdq.types.layers import LayerSpec
from mixdq.types.plan import Activations
from mixdq.types.scores import Score
from mixdq.types.tensors import CalibrationRecord

PREFIX_BYTES = 2**31
"""Memory for what the blocks gave in all recorded calls together."""


@dataclass(frozen=True, kw_only=True)
class TrialScorer:
    """Scores trials against a trace of the floating-point model; the model is the same before and after.

    "sqnr" compares the denoiser's outputs, call by call from the recorded inputs; every other metric compares pictures,
    made again from the recorded embeddings and noise. A call whose inputs are the recorded ones begins about where the
    layer does, the blocks before it having been recorded in `prefix_bytes` of memory at most (0: every call is whole).
    """

    pipe: Pipeline
    denoiser: nn.Module
    layers: Mapping[str, LayerSpec]
    record: CalibrationRecord
    trace: Trace
    ssim_window: int
    symmetric: bool
    rounding: str
    activations: Activations = "static"
    prefix_bytes: int = PREFIX_BYTES

    def __call__(self, trial: Trial) -> tuple[Score, ...]:
        """Return one score a metric, in order; raise NonFiniteError naming the layer if one is not a number."""
        layer = self.layers[trial.layer]
        prefixes = self._prefixes
        with simulated_spec(
            self.denoiser,
            layer,
            trial.bits,
            self.record,
            symmetric=self.symmetric,
            rounding=self.rounding,
            activations=self.activations,
        ):
            return tuple(self._score(trial, metric, prefixes) for metric in trial.metrics)

    def _score(self, trial: Trial, metric: str, prefixes: Sequence[Prefix]) -> Score:
        layer = trial.layer
        try:
            value = (
                self._of_outputs(layer, prefixes) if metric == "sqnr" else self._of_pictures(layer, prefixes, metric)
            )
        except NonFiniteError as error:
            text = f"{trial.layer}: with its {trial.role} at {trial.num_bits} bits the model gives NaN or infinity"
            raise NonFiniteError(text, where=trial.layer) from error
        return Score(layer=trial.layer, role=trial.role, num_bits=trial.num_bits, metric=metric, value=value)

    def _of_outputs(self, layer: str, prefixes: Sequence[Prefix]) -> float:
        outputs = []
        for call, prefix in zip(self.trace.calls, prefixes, strict=True):
            with resumed(self.denoiser, prefix, layer):
                outputs.append(replay(self.denoiser, call))
        return sqnr(torch.cat([call.output for call in self.trace.calls]), torch.cat(outputs))

    def _of_pictures(self, layer: str, prefixes: Sequence[Prefix], metric: str) -> float:
        pieces, number = [], 0
        for batch in self.trace.batches:
            # Only the first step's input is the recorded one: the layer has had a hand in the others.
            with resumed(self.denoiser, prefixes[number], layer):
                pieces.append(regenerate_batch(self.pipe, self.trace.spec, batch))
            number += len(batch.calls)
        pictures = torch.cat(pieces)
        if metric == "ssim":
            return ssim(self.trace.pictures, pictures, window=self.ssim_window)
        return METRICS[metric](self.trace.pictures, pictures)

    @cached_property
    def _prefixes(self) -> tuple[Prefix, ...]:
        """What the blocks gave in each recorded call; to be asked for with the model unchanged."""
        calls = self.trace.calls
        limit = self.prefix_bytes // len(calls)
        return tuple(record_prefix(self.denoiser, call, self.layers, limit=limit) for call in calls)
