import itertools
from collections.abc import Callable

import pytest

from mixdq.evaluation import pace as module
from mixdq.evaluation.latency import time_layers
from mixdq.evaluation.pace import Pace


@pytest.fixture
def clock(monkeypatch) -> Callable[[], float]:
    """A clock by which everything takes a tick, of a machine that is slower from look to look."""
    times = itertools.accumulate((1.01**number for number in itertools.count()), initial=0.0)
    monkeypatch.setattr(module, "LEAST_SECONDS", 1.0)
    return lambda: next(times)


def test_what_a_slower_machine_takes_longer_for_is_the_same_at_its_pace(clock) -> None:
    pace = Pace(clock=clock)
    found = [seconds / share for seconds, share in (pace.time(lambda: None) for _ in range(40))]
    assert found == pytest.approx([found[0]] * 40)
    slowest = max(share for _, share in (pace.time(lambda: None) for _ in range(2)))
    assert slowest > 5.0


def test_typical_pace_is_the_median_of_all_looks(clock) -> None:
    pace = Pace(clock=clock)
    assert pace.typical == pytest.approx(1.0)
    shares = [pace.time(lambda: None)[1] for _ in range(20)]
    assert shares[0] < pace.typical < shares[-1]


def test_layers_take_the_same_share_however_slow_the_machine_becomes(clock) -> None:
    pace = Pace(clock=clock)
    early, late = (time_layers(lambda: None, {}, pace, repeats=3).whole for _ in range(2))
    assert late == pytest.approx(early)


def test_real_product_takes_about_as_long_as_it_should() -> None:
    pace = Pace()
    _, share = pace.time(lambda: None)
    assert pace.unit > 0.0
    assert share > 0.0
