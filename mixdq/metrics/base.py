"""What a metric is, and those that need nothing but two batches of pictures.

`ClipScore` (clip_score.py) is a `Metric` too, but must be built around a model first, so it has no row here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mixdq.metrics.psnr import psnr_per_picture
from mixdq.metrics.sqnr import sqnr_per_sample
from mixdq.metrics.ssim import ssim_per_picture


class Metric(Protocol):
    """A number for each candidate picture, and its mean."""

    @property
    def name(self) -> str:
        """Return the name, as in `METRICS`, in tables and in files."""
        ...

    @property
    def unit(self) -> str:
        """Return "dB", or "" for a plain number."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Return the direction of improvement."""
        ...

    def per_picture(self, reference: Tensor, candidate: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Return float64 [pictures]."""
        ...

    def __call__(self, reference: Tensor, candidate: Tensor, prompts: Sequence[str] | None = None) -> float:
        """Return the mean of `per_picture`."""
        ...


@dataclass(frozen=True, kw_only=True)
class PairMetric:
    """A metric of two batches alone; prompts are not looked at."""

    name: str
    unit: str
    compare: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool = True

    def per_picture(self, reference: Tensor, candidate: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Return float64 [pictures]."""
        return self.compare(reference, candidate)

    def __call__(self, reference: Tensor, candidate: Tensor, prompts: Sequence[str] | None = None) -> float:
        """Return the mean over pictures."""
        return float(self.per_picture(reference, candidate, prompts).mean())


METRICS: dict[str, Metric] = {
    "ssim": PairMetric(name="ssim", unit="", compare=ssim_per_picture),
    "psnr": PairMetric(name="psnr", unit="dB", compare=psnr_per_picture),
    "sqnr": PairMetric(name="sqnr", unit="dB", compare=sqnr_per_sample),
}
