import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from mixdq.metrics.psnr import psnr, psnr_per_picture


def test_agrees_with_scikit_image() -> None:
    x, y = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8)
    pairs = zip(x.double().numpy(), y.double().numpy(), strict=True)
    theirs = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs]
    assert psnr_per_picture(x, y).tolist() == pytest.approx(theirs, abs=1e-9)


def test_identical_is_infinite() -> None:
    x = torch.rand(1, 3, 8, 8)
    assert psnr(x, x) == math.inf


def test_black_against_white_is_zero() -> None:
    assert psnr(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)) == 0


def test_bytes_would_wrap_and_are_refused() -> None:
    with pytest.raises(ValueError, match="divide by 255"):
        psnr(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.ones(1, 3, 8, 8, dtype=torch.uint8))
