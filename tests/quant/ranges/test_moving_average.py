import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.ao.quantization.observer import MovingAverageMinMaxObserver

from mixdq.quant.ranges.moving_average import MovingAverage

BATCHES = st.lists(hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(-1e6, 1e6, width=32)), min_size=1)


@settings(deadline=None, max_examples=80)
@given(batches=BATCHES, momentum=st.sampled_from([0.0, 0.5, 0.95]))
def test_formula_in_float64(batches: list[np.ndarray], momentum: float) -> None:
    estimator = MovingAverage(momentum=momentum)
    for batch in batches:
        estimator.update(torch.from_numpy(batch))
    # Unrolled: the first batch weighs momentum^(n - 1), batch i > 0 weighs (1 - momentum) momentum^(n - 1 - i).
    n = len(batches)
    weights = np.array([momentum ** (n - 1)] + [(1 - momentum) * momentum ** (n - 1 - i) for i in range(1, n)])
    found = estimator.result()
    assert found.min == pytest.approx(weights @ [float(b.min()) for b in batches], rel=1e-12, abs=1e-7)
    assert found.max == pytest.approx(weights @ [float(b.max()) for b in batches], rel=1e-12, abs=1e-7)
    assert found.batches == n


def test_agrees_with_the_observer_of_torch() -> None:
    ours, theirs = MovingAverage(), MovingAverageMinMaxObserver(averaging_constant=0.05)
    for seed in range(20):
        x = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
        ours.update(x)
        theirs(x)
    # Theirs adds up in float32, 20 times.
    assert ours.result().min == pytest.approx(theirs.min_val.item(), rel=20 * 2**-23)
    assert ours.result().max == pytest.approx(theirs.max_val.item(), rel=20 * 2**-23)


def test_a_momentum_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="momentum"):
        MovingAverage(momentum=1.0)
