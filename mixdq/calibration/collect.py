"""Ranges of every layer input over calibration prompts (arXiv 2405.17873, section 5.1), in one walk of the model."""

import hashlib
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixdq.calibration.bos import SharedState, bos_outputs
from mixdq.errors import ConfigError, NonFiniteError
from mixdq.pipeline.family import ModelFamily, Pipeline
from mixdq.pipeline.generate import GenerationSpec, denoise
from mixdq.pipeline.layers import watched
from mixdq.quant.ranges import ESTIMATORS, RangeEstimator
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.progress import Progress, no_progress
from mixdq.types.tensors import CalibrationRecord

log = logging.getLogger(__name__)


def calibrate(
    pipe: Pipeline,
    family: ModelFamily,
    table: LayerTable,
    prompts: Sequence[str],
    spec: GenerationSpec,
    *,
    estimator: str = "moving_average",
    batch_size: int = 8,
    progress: Progress = no_progress,
) -> CalibrationRecord:
    """Return the input range of every layer of `table`, one for each part of a joined input, and the BOS rows.

    All steps of all prompts feed one range, so the ranges hold for every step. Layers that read the text embedding are
    measured on tokens 1.. alone. With "moving_average", `batch_size` changes the ranges a little: it smooths extremes
    of batches. Pictures are not decoded.

    Raises:
        ConfigError: no estimator has that name.
        NonFiniteError: a weight or a layer input holds NaN or infinity; names the first layer.
        EmptyRangeError: a layer never ran.
        BosNotConstantError: the first text token's state differs from prompt to prompt.
    """
    if estimator not in ESTIMATORS:
        raise ConfigError(f"estimator = {estimator!r}: expected one of {', '.join(sorted(ESTIMATORS))}")
    denoiser = family.denoiser(pipe)
    modules = {layer.name: denoiser.get_submodule(layer.name) for layer in table}
    _check_weights(modules)
    layers = {layer.name: layer for layer in table}
    estimators = {layer.name: _estimators(layer, estimator) for layer in table}
    shared = SharedState()

    def note(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        layer = layers[name]
        if layer.bos:
            shared.see(name, x[..., 0, :])
        for one, part in zip(estimators[name], input_parts(layer, x), strict=True):
            one.update(part)

    with watched(modules, note):
        denoise(pipe, prompts, spec, batch_size=batch_size, progress=progress, what="calibration")
    ranges = {name: tuple(one.result() for one in ones) for name, ones in estimators.items()}
    state = shared.result() if any(layer.bos for layer in table) else None
    log.info("calibrated %d layers on %d prompts (%s)", len(ranges), len(prompts), estimator)
    return CalibrationRecord(
        ranges=ranges,
        bos_input=state,
        bos_outputs={} if state is None else bos_outputs(denoiser, table, state),
        origin={
            "model": table.digest,
            "prompts": _digest(*prompts),
            "settings": _digest(repr(spec), estimator, str(batch_size)),
        },
    )


def input_parts(layer: LayerSpec, x: Tensor) -> tuple[Tensor, ...]:
    """Return what of an input is quantized with one range each: tokens 1.. of a text embedding, parts of a join."""
    if layer.bos:
        return (x[..., 1:, :],)
    if layer.input_splits:
        return torch.split(x, list(layer.input_splits), dim=1 if layer.op == "conv2d" else -1)
    return (x,)


def _estimators(layer: LayerSpec, estimator: str) -> list[RangeEstimator]:
    return [ESTIMATORS[estimator](layer.name) for _ in layer.input_splits or (0,)]


def _check_weights(modules: dict[str, nn.Module]) -> None:
    """Name the broken layer itself: its NaN would show up in the input of some other."""
    for name, module in modules.items():
        for key, parameter in module.named_parameters(recurse=False):
            if not bool(torch.isfinite(parameter).all()):
                raise NonFiniteError(f"{name}: its {key} holds NaN or infinity; copy the model again", where=name)


def _digest(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()
