import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixdq.quant.ranges.percentile import Percentile

SAMPLES = hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e3, 1e3, width=32))


@settings(deadline=None, max_examples=100)
@given(x=SAMPLES, percentile=st.sampled_from([75.0, 99.0, 99.9, 100.0]))
def test_bounds_lie_within_a_bin_beyond_those_of_numpy(x: np.ndarray, percentile: float) -> None:
    estimator = Percentile(percentile=percentile)
    estimator.update(torch.from_numpy(x))
    found = estimator.result()
    exact = x.astype(np.float64)
    bin_width = np.abs(exact).max() / 2048 + 2.0**-100
    upper = np.percentile(exact, percentile, method="higher")
    lower = np.percentile(exact, 100.0 - percentile, method="lower")
    assert upper <= found.max <= upper + bin_width
    assert lower - bin_width <= found.min <= lower


def test_all_of_it_is_min_and_max() -> None:
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    estimator = Percentile(percentile=100.0)
    for row in x:
        estimator.update(row)
    assert (estimator.result().min, estimator.result().max) == (x.min().item(), x.max().item())


def test_one_outlier_in_a_million_is_left_out() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    x[0] = 800.0
    estimator = Percentile()
    estimator.update(x)
    # A Gaussian's 99.99th percentile is 3.72; a bin is 0.25 wide, as the outlier stretches it.
    assert 3.4 < estimator.result().max < 4.3


@pytest.mark.parametrize("percentile", [50.0, 100.1, float("nan")])
def test_a_percentile_that_is_none_is_refused(percentile: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        Percentile(percentile=percentile)
