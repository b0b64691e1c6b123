"""Peak signal-to-noise ratio of pictures whose peak is 1."""

import torch
from torch import Tensor

from mixdq.metrics.inputs import check_pair, check_pictures


def psnr(reference: Tensor, candidate: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, mean over pictures; higher is better.

    Both are [pictures, 3, height, width] in 0..1; the peak is 1 and the arithmetic float64, so nothing can wrap.
    Identical pictures give `inf`.

    Raises:
        ValueError: shapes differ, integers, or values outside 0..1.
        NonFiniteError: NaN or infinity.

    >>> round(psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.1, dtype=torch.float32)), 5)
    20.0
    """
    return float(psnr_per_picture(reference, candidate).mean())


def psnr_per_picture(reference: Tensor, candidate: Tensor) -> Tensor:
    """Return the ratio in dB of each picture, float64 [pictures]."""
    check_pair(reference, candidate)
    check_pictures(reference, "reference")
    check_pictures(candidate, "candidate")
    error = (candidate.detach().to(torch.float64) - reference.detach().to(torch.float64)).square().flatten(1)
    # 10 log10(1^2 / mean (q - t)^2); zero error gives +inf
    return -10 * torch.log10(error.mean(dim=1))
