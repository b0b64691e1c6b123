"""Signed products <v, J dW> of many trials by one metric, for random v with E[v v^T] = H: estimates are made of them.

The mean of their squares over vectors is an unbiased estimate of a trial's loss (J dW)^T H (J dW), and that of the
product of two trials' of what both cost together beyond their own; see `losses` and `sketch`. Each sample (a picture,
or a row of a denoiser call) has vectors of its own, and each vector depends on its number, the metric and the sample
alone: the same products come out whoever computes them, and however they are dealt.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mixdq.errors import UnsupportedModelError
from mixdq.metrics.ssim_form import ssim_vector
from mixdq.pipeline.gradient import differentiable
from mixdq.pipeline.trace import regenerate_batch, replay
from mixdq.quant.simulate_plan import spec_input_quantizer
from mixdq.sensitivity.probe import KEPT_BYTES, Probe, probing
from mixdq.sensitivity.resume import Floats
from mixdq.sensitivity.scorer import TrialScorer
from mixdq.sensitivity.trials import Trial

SKETCHED = ("sqnr", "ssim")
"""The metrics whose form H is known."""
_NO_MEMORY = ("allocate memory", "not enough memory", "out of memory")
"""What allocators say in a plain RuntimeError: the CPU's on Linux and on Windows, and that of Apple's GPUs."""


class Products:
    """Products of trials by one metric, from one part of the recorded run: a denoiser call (sqnr) or a batch (ssim)."""

    def __init__(
        self, trials: Sequence[Trial], scorer: TrialScorer, metric: str, *, checkpointing: bool = False
    ) -> None:
        self._trials, self._scorer, self._metric, self._checkpointing = trials, scorer, metric, checkpointing
        self._probes, self._columns = _probes(trials, scorer)

    def __call__(self, part: int, numbers: Sequence[int]) -> Floats:
        """Return the products of the vectors of these numbers, [vectors, samples of the part, trials].

        Raises:
            UnsupportedModelError: the denoiser or the decoder cannot be differentiated, or there is no memory for it.
            NonFiniteError: a gradient holds NaN or infinity; names the layer.
        """
        scorer = self._scorer
        of_part = self._of_call if self._metric == "sqnr" else self._of_batch
        with (
            _explaining(scorer.denoiser, self._checkpointing),
            differentiable(scorer.pipe, scorer.denoiser, checkpointing=self._checkpointing),
        ):
            return of_part(part, numbers).numpy()

    @property
    def parts(self) -> int:
        """How many parts the run has."""
        trace = self._scorer.trace
        return len(trace.calls if self._metric == "sqnr" else trace.batches)

    def _of_call(self, index: int, numbers: Sequence[int]) -> Tensor:
        call = self._scorer.trace.calls[index]
        signal = call.output.to(torch.float64).flatten(1).norm(dim=1)

        def vector(number: int) -> Tensor:
            rows = [
                _signs(call.output[:1].shape, _generator("sqnr", index, row, number)) for row in range(len(call.output))
            ]
            return torch.cat(rows)

        products = self._products(
            lambda: replay(self._scorer.denoiser, call, gradient=True), vector, len(call.output), numbers
        )
        of_rows: Tensor = products / signal[:, None]
        return of_rows

    def _of_batch(self, index: int, numbers: Sequence[int]) -> Tensor:
        scorer = self._scorer
        trace = scorer.trace
        batch = trace.batches[index]
        rows = len(batch.calls[0].output)
        references = trace.pictures[batch.first : batch.first + batch.count]
        # Gradients as large as those of signs on the pictures: float16 has no room for those of a mean.
        gain = math.sqrt(trace.pictures[0].numel())

        def vector(number: int) -> Tensor:
            pictures = [
                ssim_vector(one[None], _generator("ssim", batch.first + row, number), window=scorer.ssim_window)
                for row, one in enumerate(references)
            ]
            return gain * torch.cat(pictures)

        products = self._products(
            lambda: regenerate_batch(scorer.pipe, trace.spec, batch, gradient=True), vector, rows, numbers
        )
        # With guidance a picture has two rows, without a prompt and with it, one batch after the other.
        of_pictures = products.reshape(len(products), -1, batch.count, len(self._trials)).sum(1)
        return of_pictures / gain

    def _products(
        self, forward: Callable[[], Tensor], vector: Callable[[int], Tensor], rows: int, numbers: Sequence[int]
    ) -> Tensor:
        """Return <v, J dW>, [vectors, rows, trials]."""
        found = []
        for probe in self._probes:
            # Something may be left there of a pass that failed.
            probe.products = None
        with probing(self._probes, rows), torch.enable_grad():
            result = forward()
            if not result.requires_grad:
                raise RuntimeError("its result does not depend on its layers as far as autograd knows")
            for number in numbers:
                v = vector(number).to(result.dtype)
                torch.autograd.backward(result, v, retain_graph=number != numbers[-1])
                found.append(self._taken(rows))
        return torch.stack(found)

    def _taken(self, rows: int) -> Tensor:
        """Return what the probes have found, [rows, trials], and make them empty again."""
        out = torch.zeros(rows, len(self._trials), dtype=torch.float64)
        for probe, columns in zip(self._probes, self._columns, strict=True):
            if probe.products is not None:
                out[:, columns] = probe.products
            probe.products = None
        return out


def _probes(trials: Sequence[Trial], scorer: TrialScorer) -> tuple[list[Probe], list[list[int]]]:
    """Return a probe for each layer, and which trials its products belong to."""
    of_layer: dict[str, list[int]] = {}
    for column, trial in enumerate(trials):
        of_layer.setdefault(trial.layer, []).append(column)
    numel = sum(scorer.layers[trial.layer].weight_numel for trial in trials if trial.role == "weight")
    probes, columns = [], []
    for name, indices in of_layer.items():
        module, layer = scorer.denoiser.get_submodule(name), scorer.layers[name]
        assert isinstance(module, nn.Linear | nn.Conv2d)
        weights = [column for column in indices if trials[column].role == "weight"]
        inputs = [column for column in indices if trials[column].role == "activation"]
        quantizers = {
            trials[column].num_bits: spec_input_quantizer(
                module, layer, trials[column].num_bits, scorer.record, activations=scorer.activations
            )
            for column in inputs
        }
        probes.append(
            Probe(
                layer,
                module,
                [trials[column].num_bits for column in weights],
                quantizers,
                symmetric=scorer.symmetric,
                rounding=scorer.rounding,
                keep=4 * numel <= KEPT_BYTES,
            )
        )
        columns.append(weights + inputs)
    return probes, columns


@contextmanager
def _explaining(denoiser: nn.Module, checkpointing: bool) -> Iterator[None]:
    """Say in the user's words why there is no backward pass."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0] or repr(error)
        if isinstance(error, torch.OutOfMemoryError) or any(text in reason for text in _NO_MEMORY):
            saving = "" if checkpointing else "sensitivity.checkpointing = true, one more forward pass a backward; or "
            raise UnsupportedModelError(
                f"no memory for a backward pass ({reason}). Set {saving}a smaller generation.batch_size; "
                "or sensitivity.method = 'exact'"
            ) from error
        raise UnsupportedModelError(
            f"{type(denoiser).__name__}: no gradient reaches its layers ({reason}); set sensitivity.method = 'exact'"
        ) from error


def _generator(*what: object) -> torch.Generator:
    """Return the source of one vector; on the CPU, so that every device sees the same."""
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "little"))


def _signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.float32).mul_(2.0).sub_(1.0)
