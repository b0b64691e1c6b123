import pytest

from mixdq.evaluation.timing import time_pictures


def test_median_is_per_picture_and_warm_up_is_left_out() -> None:
    now = [0.0]
    costs = iter([100.0, 4.0, 8.0, 40.0])

    def make() -> None:
        now[0] += next(costs)

    timing = time_pictures(make, pictures=4, repeats=3, warm_up=1, clock=lambda: now[0])
    assert timing.seconds_per_picture == (1.0, 2.0, 10.0)
    assert timing.median == 2.0


def test_quick_calls_are_timed_until_enough_time_is_full() -> None:
    now = [0.0]
    costs = iter([0.5, 0.125, 0.03125, *[0.0625] * 20])

    def make() -> None:
        now[0] += next(costs)

    timing = time_pictures(make, pictures=1, repeats=2, warm_up=1, clock=lambda: now[0])
    assert timing.seconds_per_picture == (0.125, 0.03125, *[0.0625] * 6)
    assert timing.median == 0.0625


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to time"):
        time_pictures(lambda: None, pictures=0)
