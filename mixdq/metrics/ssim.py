"""Structural similarity: the metric of the content group (Wang et al. 2004; arXiv 2405.17873, metric decoupling).

Our own, since sensitivity analysis asks for it thousands of times: each window is two small matrix products in
float64, some twenty times faster than the grouped convolution of torchmetrics on a CPU and free in the window's size.
The tests hold it to torchmetrics and to scikit-image.
"""

from typing import Literal

import torch
from torch import Tensor

from mixdq.metrics.inputs import check_pair, check_pictures

Kernel = Literal["gaussian", "uniform"]

_SIGMA_OF_WINDOW = 1.5 / 11
"""Wang et al. use a Gaussian of sigma 1.5 in a window of 11; other windows keep that proportion."""
C1, C2 = 0.01**2, 0.03**2
"""(k L)^2 of the paper, with k1 = 0.01, k2 = 0.03 and L = 1, the range of a picture."""

_CHUNK_NUMEL = 2**22
"""Elements compared at once; bounds the memory that large pictures need."""


def ssim(reference: Tensor, candidate: Tensor, *, window: int = 11, kernel: Kernel = "gaussian") -> float:
    """Return the structural similarity, mean over pictures; 1 is identical, higher is better.

    Both are [pictures, 3, height, width] in 0..1. `window` is odd: pixels on a side of the neighbourhood that is
    compared, weighted by a Gaussian of sigma `1.5 * window / 11` or all alike ("uniform"). Borders are mirrored and
    count. Computed in float64: in float32 the differences of squares cost the fourth decimal.

    Raises:
        ValueError: shapes differ, integers, values outside 0..1, or a window that is even or wider than the picture.
        NonFiniteError: NaN or infinity.

    >>> picture = torch.rand(2, 3, 32, 32)
    >>> ssim(picture, picture)
    1.0
    """
    return float(ssim_per_picture(reference, candidate, window=window, kernel=kernel).mean())


def ssim_per_picture(reference: Tensor, candidate: Tensor, *, window: int = 11, kernel: Kernel = "gaussian") -> Tensor:
    """Return the structural similarity of each picture, float64 [pictures]; arguments as in `ssim`."""
    check_pair(reference, candidate)
    check_pictures(reference, "reference")
    check_pictures(candidate, "candidate")
    chunk = max(1, _CHUNK_NUMEL // reference[0].numel())
    maps = (
        ssim_map(x, y, window=window, kernel=kernel).mean(dim=(1, 2, 3))
        for x, y in zip(torch.split(reference, chunk), torch.split(candidate, chunk), strict=True)
    )
    return torch.cat(list(maps))


def ssim_map(reference: Tensor, candidate: Tensor, *, window: int = 11, kernel: Kernel = "gaussian") -> Tensor:
    """Return the similarity around every pixel, float64 [pictures, 3, height, width]; arguments as in `ssim`."""
    check_pair(reference, candidate)
    check_pictures(reference, "reference")
    check_pictures(candidate, "candidate")
    rows, columns = window_matrices(reference, window, kernel)

    def local_mean(x: Tensor) -> Tensor:
        return rows @ x @ columns.T

    x = reference.detach().to(torch.float64)
    y = candidate.detach().to(torch.float64)
    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = (local_mean(x * x) - mean_x**2).clamp(min=0)
    variance_y = (local_mean(y * y) - mean_y**2).clamp(min=0)
    covariance = local_mean(x * y) - mean_x * mean_y
    # (2 mx my + c1) (2 cov + c2)  /  (mx^2 + my^2 + c1) (vx + vy + c2)
    return ((2 * mean_x * mean_y + C1) * (2 * covariance + C2)) / (
        (mean_x**2 + mean_y**2 + C1) * (variance_x + variance_y + C2)
    )


def window_matrices(pictures: Tensor, window: int, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Return `rows` [height, height] and `columns` [width, width], float64: local means are `rows @ x @ columns.T`.

    Raises:
        ValueError: the window is even or wider than the picture.
    """
    height, width = pictures.shape[-2:]
    if window < 3 or window % 2 == 0 or window > min(height, width):
        raise ValueError(
            f"window = {window}: expected an odd number from 3 to the picture's shorter side, {min(height, width)}"
        )
    weights = _window_weights(window, kernel)
    return _filter_matrix(height, weights).to(pictures.device), _filter_matrix(width, weights).to(pictures.device)


def _window_weights(window: int, kernel: Kernel) -> Tensor:
    """Return float64 [window], summing to 1."""
    if kernel == "uniform":
        return torch.full((window,), 1 / window, dtype=torch.float64)
    offset = torch.arange(window, dtype=torch.float64) - window // 2
    weights = torch.exp(-0.5 * (offset / (_SIGMA_OF_WINDOW * window)).square())
    return weights / weights.sum()


def _filter_matrix(side: int, weights: Tensor) -> Tensor:
    """Return float64 [side, side]: row i holds the window around i, folded back where it leaves the picture."""
    position = torch.arange(side)[:, None] + torch.arange(len(weights)) - len(weights) // 2
    mirrored = (side - 1) - ((side - 1) - position.abs()).abs()
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, mirrored, weights.expand(side, -1))
