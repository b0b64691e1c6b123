import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixdq.errors import NonFiniteError
from mixdq.metrics.sqnr import sqnr, sqnr_per_sample


@given(st.integers(-40, 60), st.integers(1, 4))
def test_sqnr_is_the_noise_that_was_added(decibels: int, batch: int) -> None:
    signal = torch.randn(batch, 5, 7, dtype=torch.float64)
    noise = torch.randn_like(signal)
    power = signal.square().sum((1, 2), keepdim=True) / noise.square().sum((1, 2), keepdim=True)
    assert sqnr(signal, signal + noise * (power * 10 ** (-decibels / 10)).sqrt()) == pytest.approx(decibels, abs=1e-6)


def test_sqnr_does_not_see_a_common_factor() -> None:
    a, b = torch.randn(2, 9), torch.randn(2, 9)
    assert sqnr(4 * a, 4 * b) == sqnr(a, b)


def test_identical_is_infinite_even_where_it_is_zero() -> None:
    x = torch.stack([torch.zeros(4), torch.ones(4)])
    assert sqnr(x, x) == math.inf


def test_samples_are_apart() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    assert sqnr_per_sample(a, b).tolist() == [sqnr(a[i : i + 1], b[i : i + 1]) for i in range(3)]


def test_half_precision_does_not_overflow() -> None:
    big = torch.full((1, 1000), 6e4, dtype=torch.float16)
    assert math.isfinite(sqnr(big, big / 2))


def test_other_shapes_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\].*\[2, 4\]"):
        sqnr(torch.ones(2, 3), torch.ones(2, 4))
    bad = torch.ones(3, 2)
    bad[1, 0] = math.nan
    with pytest.raises(NonFiniteError, match="number 1") as error:
        sqnr(torch.ones(3, 2), bad)
    assert error.value.where == "candidate"
