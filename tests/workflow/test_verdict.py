import math

import pytest

from mixdq.workflow.verdict import OWN_RUN_SLACK, UNIFORM_SLACK, Check, Closeness


def check(sqnr_db: float, ssim: float, *, own_run: bool = True, strangers: float = 0.2, differences: int = 0) -> Check:
    return Check(
        plan="W4A8-01",
        model="tuned",
        prompts=8,
        measured=Closeness(sqnr_db=sqnr_db, ssim=ssim),
        yardstick=Closeness(sqnr_db=20.0, ssim=0.95),
        own_run=own_run,
        against="on its own model",
        strangers=strangers,
        differences=differences,
    )


def decibels(factor: float) -> float:
    return 10 * math.log10(factor)


@pytest.mark.parametrize(("own_run", "slack"), [(True, OWN_RUN_SLACK), (False, UNIFORM_SLACK)])
def test_errors_may_be_so_many_times_those_of_the_yardstick_and_no_more(own_run, slack) -> None:
    below, above = slack * 0.99, slack * 1.01
    assert check(20 - decibels(below), 1 - 0.05 * below, own_run=own_run).outcome == "holds"
    assert check(20 - decibels(above), 0.99, own_run=own_run).outcome == "holds less well"
    assert check(30, 1 - 0.05 * above, own_run=own_run).outcome == "holds less well"


def test_pictures_are_ruined_by_an_error_of_half_the_power_or_by_likeness_to_nothing() -> None:
    assert check(3.02, 0.9).outcome == "holds less well"
    assert check(3.0, 0.9).outcome == "ruins the pictures"
    assert check(20, 0.2).outcome == "ruins the pictures"
    assert check(20, 0.9, strangers=0.91).outcome == "ruins the pictures"


def test_identical_pictures_hold() -> None:
    assert check(math.inf, 1.0).outcome == "holds"


def test_verdict_says_what_where_and_how_much() -> None:
    text = check(19.5, 0.9, differences=3).text
    assert text == (
        "plan W4A8-01 holds on tuned: SQNR 19.5 dB, SSIM 0.9000 on 8 prompts; on its own model: SQNR 20.0 dB, "
        "SSIM 0.9500; pictures of different prompts: SSIM 0.2000; 3 layers differ"
    )
