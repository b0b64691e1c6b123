"""Losses of many trials by one metric, from the same backward passes: a vector more, and all are better known.

For random v with E[v v^T] = H the mean of <v, J dW>^2 is an unbiased estimate of the loss (J dW)^T H (J dW); see
`sketch`, which says how many vectors there are. Each sample (a picture, or a row of a denoiser call) has vectors and an
estimate of its own, so that the score is the mean over samples that the exact metric is.
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
from mixdq.sensitivity.trial import Trial, TrialScorer
from mixdq.types.scores import Score

SKETCHED = ("sqnr", "ssim")
"""The metrics whose form H is known."""

_DECIBEL = 10.0 / math.log(10.0)


class Losses:
    """Estimates of the losses of trials by one metric, better with every vector."""

    def __init__(
        self, trials: Sequence[Trial], scorer: TrialScorer, metric: str, *, checkpointing: bool = False
    ) -> None:
        self._trials, self._scorer, self._metric, self._checkpointing = trials, scorer, metric, checkpointing
        self._probes, self._columns = _probes(trials, scorer)
        self._squares: list[Tensor] = []

    @property
    def vectors(self) -> int:
        """How many there have been."""
        return len(self._squares)

    @property
    def squares(self) -> Tensor:
        """The squared products, [vectors, samples, trials] float64: one sample a picture, or a row of a call."""
        return torch.stack(self._squares)

    def add(self, count: int) -> None:
        """Add `count` vectors; each depends on its number, the metric and the sample alone."""
        scorer = self._scorer
        trace = scorer.trace
        numbers = range(self.vectors, self.vectors + count)
        with differentiable(scorer.pipe, scorer.denoiser, checkpointing=self._checkpointing):
            if self._metric == "sqnr":
                pieces = [self._of_call(index, numbers) for index in range(len(trace.calls))]
            else:
                pieces = [self._of_batch(index, numbers) for index in range(len(trace.batches))]
        self._squares += list(torch.cat(pieces, dim=1))

    @property
    def error(self) -> float:
        """The standard error of the median trial's loss, as a share of the loss."""
        power, error = self._moments()
        known = (power > 0).all(0)
        shares = (error.square().sum(0).sqrt() / power.sum(0))[known]
        return float(shares.median()) if len(shares) else 0.0

    def scores(self) -> list[Score | None]:
        """Return the trials' scores in order; None where a loss is zero as far as gradients tell."""
        power, error = self._moments()
        if self._metric == "sqnr":
            # The mean of n squares of a normal variable is n times chi-squared: its logarithm is too low on average.
            half = torch.tensor(self.vectors / 2.0, dtype=torch.float64)
            values = -_DECIBEL * (power.log().mean(0) + half.log() - half.digamma())
            errors = _DECIBEL * (error / power).square().sum(0).sqrt() / len(power)
        else:
            # Errors unlike the picture give 1 / (1 + loss) in every window, which is 1 - loss while it is small.
            values = (1.0 / (1.0 + power)).mean(0)
            errors = (error / (1.0 + power).square()).square().sum(0).sqrt() / len(power)
        known = (power > 0).all(0).tolist()
        return [
            Score(
                layer=trial.layer,
                role=trial.role,
                num_bits=trial.num_bits,
                metric=self._metric,
                value=value,
                stderr=stderr,
            )
            if usable
            else None
            for trial, value, stderr, usable in zip(self._trials, values.tolist(), errors.tolist(), known, strict=True)
        ]

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Return each sample's mean square and its standard error, [samples, trials]."""
        squares = self.squares
        return squares.mean(0), squares.std(0) / len(squares) ** 0.5

    def _of_call(self, index: int, numbers: range) -> Tensor:
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
        return torch.square(products / signal[:, None])

    def _of_batch(self, index: int, numbers: range) -> Tensor:
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
        return torch.square(of_pictures / gain)

    def _products(
        self, forward: Callable[[], Tensor], vector: Callable[[int], Tensor], rows: int, numbers: range
    ) -> Tensor:
        """Return <v, J dW>, [vectors, rows, trials]."""
        found = []
        with _explaining(self._scorer.denoiser), probing(self._probes, rows), torch.enable_grad():
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
def _explaining(denoiser: nn.Module) -> Iterator[None]:
    """Say in the user's words why there is no backward pass."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in reason:
            raise UnsupportedModelError(
                f"no memory for a backward pass ({reason}). Set sensitivity.checkpointing = true, which costs one more "
                "forward pass a backward; or a smaller generation.batch_size; or sensitivity.method = 'exact'"
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
