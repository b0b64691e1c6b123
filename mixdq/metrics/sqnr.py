"""Signal-to-quantization-noise ratio: the metric of the quality group (arXiv 2405.17873, metric decoupling)."""

import torch
from torch import Tensor

from mixdq.metrics.inputs import check_pair


def sqnr(reference: Tensor, candidate: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio in dB; higher is better.

    Both are [batch, ...] of one shape; the ratio is taken per sample in float64 and averaged.
    Identical inputs give `inf`.

    Raises:
        ValueError: the shapes differ or there is no data.
        NonFiniteError: NaN or infinity.

    >>> round(sqnr(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 3.5]])), 9)
    20.0
    """
    return float(sqnr_per_sample(reference, candidate).mean())


def sqnr_per_sample(reference: Tensor, candidate: Tensor) -> Tensor:
    """Return the ratio in dB of each sample, float64 [batch]; `inf` where a sample is identical."""
    check_pair(reference, candidate)
    signal = reference.detach().to(torch.float64).flatten(1) if reference.ndim > 1 else reference.double()[:, None]
    quantized = candidate.detach().to(torch.float64).flatten(1) if candidate.ndim > 1 else candidate.double()[:, None]
    noise_power = (quantized - signal).square().sum(dim=1)
    # 10 log10(sum t^2 / sum (q - t)^2)
    ratio = 10 * torch.log10(signal.square().sum(dim=1) / noise_power)
    return torch.where(noise_power == 0, torch.inf, ratio)
