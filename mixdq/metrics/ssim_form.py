"""What 1 - SSIM is for small errors: a sum of squares, and random vectors that have it for their covariance.

With e the error, mu and v the mean and variance in the window w around a pixel, N windows in all (Wang et al. 2004):

    1 - SSIM  =  1/N sum_w [ mu_e^2 / (2 mu_x^2 + C1)  +  v_e / (2 v_x + C2) ]  +  O(e^3)

A vector u with E[u u^T] equal to this form's matrix has E[<u, e>^2] = 1 - SSIM, whatever e is, which is all that a
sketch asks for. Not here: SSIM itself (`ssim`), which says what the windows are.
"""

import torch
from torch import Tensor

from mixdq.metrics.ssim import C1, C2, Kernel, window_matrices


def ssim_loss(reference: Tensor, error: Tensor, *, window: int = 11, kernel: Kernel = "gaussian") -> Tensor:
    """Return 1 - SSIM of `reference` and `reference + error` up to O(error^3), float64 [pictures]; as `ssim` does."""
    rows, columns = window_matrices(reference, window, kernel)
    of_mean, of_variance = _weights(reference.to(torch.float64), rows, columns)
    e = error.to(torch.float64)
    mean = rows @ e @ columns.T
    variance = rows @ e.square() @ columns.T - mean.square()
    return (of_mean * mean.square() + of_variance * variance).mean(dim=(1, 2, 3))


def ssim_vector(
    reference: Tensor, generator: torch.Generator, *, window: int = 11, kernel: Kernel = "gaussian"
) -> Tensor:
    """Return a random u, float64 and shaped like `reference` [1, 3, height, width], with E[<u, e>^2] = `ssim_loss`.

    With signs xi, zeta of each window, eta of each pixel, all independent, and k_w the weights of window w:

        u  =  N^-1/2 sum_w [ a_w xi_w k_w  +  b_w zeta_w (sqrt(k_w) eta - k_w <sqrt(k_w), eta>) ]

    The signs zeta keep windows apart that share the pixels' eta; the bracket has covariance diag(k_w) - k_w k_w^T.
    """
    rows, columns = window_matrices(reference, window, kernel)
    of_mean, of_variance = _weights(reference.to(torch.float64), rows, columns)
    xi, zeta, eta = (_signs(reference.shape, generator).to(reference.device) for _ in range(3))
    share = reference[0].numel() ** -0.5
    a, b = share * of_mean.sqrt() * xi, share * of_variance.sqrt() * zeta
    root_rows, root_columns = rows.sqrt(), columns.sqrt()
    u: Tensor = eta * (root_rows.T @ b @ root_columns)
    u += rows.T @ (a - b * (root_rows @ eta @ root_columns.T)) @ columns
    return u


def _weights(x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return what squared mean and variance of the error are multiplied by, around every pixel."""
    mean = rows @ x @ columns.T
    variance = (rows @ (x * x) @ columns.T - mean.square()).clamp(min=0)
    return 1.0 / (2.0 * mean.square() + C1), 1.0 / (2.0 * variance + C2)


def _signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.float64).mul_(2.0).sub_(1.0)
