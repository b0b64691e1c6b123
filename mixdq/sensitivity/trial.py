"""One evaluation of sensitivity analysis: a layer, a role and a width, scored by replaying a recorded run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from mixdq.errors import ConfigError, NonFiniteError
from mixdq.metrics.base import METRICS
from mixdq.metrics.sqnr import sqnr
from mixdq.metrics.ssim import ssim
from mixdq.pipeline.family import Pipeline
from mixdq.pipeline.prefix import Prefix, record_prefix, resumed
from mixdq.pipeline.trace import Trace, regenerate_batch, replay
from mixdq.quant.simulate_plan import simulated_spec
from mixdq.types.layers import Group, LayerSpec, LayerTable
from mixdq.types.plan import FLOAT_BITS, Activations, LayerBits
from mixdq.types.scores import Role, Score, ScoreKey
from mixdq.types.tensors import CalibrationRecord

PREFIX_BYTES = 2**31
"""Memory for what the blocks gave in all recorded calls together."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One layer with its weight or its input at `num_bits`, to be scored by `metrics`."""

    layer: str
    role: Role
    num_bits: int
    metrics: tuple[str, ...]

    @property
    def bits(self) -> LayerBits:
        """The widths of the layer in this trial."""
        if self.role == "weight":
            return LayerBits(weight=self.num_bits, activation=FLOAT_BITS)
        return LayerBits(weight=FLOAT_BITS, activation=self.num_bits)

    @property
    def keys(self) -> tuple[ScoreKey, ...]:
        """The keys of its scores."""
        return tuple((self.layer, self.role, self.num_bits, metric) for metric in self.metrics)


def list_trials(
    table: LayerTable,
    weight_bits: Mapping[Group, Sequence[int]],
    activation_bits: Mapping[Group, Sequence[int]],
    metric_of: Mapping[Group, Sequence[str]],
) -> tuple[Trial, ...]:
    """Return all trials, layer by layer in table order, weights before activations, widths as given.

    A group without metrics or widths is not measured; 16 bits, which change nothing, are left out.

    Raises:
        ConfigError: a metric has no such name.
    """
    unknown = {metric for metrics in metric_of.values() for metric in metrics} - METRICS.keys()
    if unknown:
        raise ConfigError(f"metric {', '.join(sorted(unknown))}: expected one of {', '.join(sorted(METRICS))}")
    widths_of: tuple[tuple[Role, Mapping[Group, Sequence[int]]], ...] = (
        ("weight", weight_bits),
        ("activation", activation_bits),
    )
    return tuple(
        Trial(layer=layer.name, role=role, num_bits=num_bits, metrics=tuple(metric_of[layer.group]))
        for layer in table
        for role, widths in widths_of
        for num_bits in widths.get(layer.group, ())
        if num_bits != FLOAT_BITS and metric_of.get(layer.group)
    )


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
