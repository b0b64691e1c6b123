import pytest
import torch

from mixdq.metrics.ssim import ssim_per_picture
from mixdq.metrics.ssim_form import ssim_loss, ssim_vector

KERNELS = [("gaussian", 11), ("uniform", 5)]


def picture(side: int, flat: float = 0.5) -> torch.Tensor:
    """A part of noise and a part of one colour: windows of every variance."""
    x = 0.2 + 0.6 * torch.rand(1, 3, side, side + 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[..., : int(side * flat), :] = 0.7
    return x


def noise(like: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("kernel", "window"), KERNELS)
def test_the_form_is_the_second_order_of_one_minus_ssim(kernel, window: int) -> None:
    x = picture(24)
    errors = {"noise": noise(x, 1), "a shift": torch.ones_like(x), "one pixel": torch.zeros_like(x)}
    errors["one pixel"][..., 3, 3] = 1.0
    for name, error in errors.items():
        last = float("inf")
        for size in (1e-2, 1e-3, 1e-4):
            e = size * error
            exact = float(1.0 - ssim_per_picture(x, x + e, window=window, kernel=kernel))
            gap = abs(float(ssim_loss(x, e, window=window, kernel=kernel)) - exact)
            # What is left out is of the third order: of a tenth of the error a thousandth, until rounding shows, that
            # of local variances: some ulp of 1, which are divided by C2 = 0.0009.
            assert gap < max(0.003 * last, 2e-12), name
            last = gap
        assert exact > 1e-9
        assert last < 1e-2 * exact, name


@pytest.mark.parametrize(("kernel", "window"), KERNELS)
def test_the_mean_square_over_random_vectors_is_the_form(kernel, window: int) -> None:
    x = picture(16)
    error = noise(x, 2) + 0.5
    generator = torch.Generator().manual_seed(3)
    vectors = torch.stack(
        [(ssim_vector(x, generator, window=window, kernel=kernel) * error).sum() for _ in range(3000)]
    )
    squares = vectors.square()
    expected = float(ssim_loss(x, error, window=window, kernel=kernel))
    stderr = float(squares.std()) / len(squares) ** 0.5
    assert abs(float(squares.mean()) - expected) < 4 * stderr
    assert stderr < 0.05 * expected


def test_vectors_are_the_same_for_the_same_generator() -> None:
    x = picture(12)
    first, second = (ssim_vector(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, ssim_vector(x, torch.Generator().manual_seed(6)))
