import numpy as np
import pytest

from mixdq.pipeline.generate import GenerationSpec
from mixdq.sensitivity.desk import Desk, Slice
from mixdq.sensitivity.trials import by_metric
from mixdq.testing import tiny_sdxl_pipeline


@pytest.mark.parametrize("metric", ["sqnr", "ssim"])
def test_a_slice_is_the_same_before_and_after_other_tasks(metric, build_scorer, eight_bit_trials, products_of) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec(), batch_size=2)
    trials = eight_bit_trials(scorer, metric)[::7]
    desk = Desk(scorer, by_metric(trials))
    assert desk.parts(metric) == 2
    last = Slice(metric=metric, part=1, numbers=(3, 1))
    found = desk.products(last)
    assert found.shape == (2, 1, len(trials))
    assert np.array_equal(found, products_of(trials, scorer, metric, 4)[[3, 1], 2:])
    assert desk.score(trials[0]) == scorer(trials[0])
    desk.products(Slice(metric=metric, part=0, numbers=(0,)))
    assert np.array_equal(desk.products(last), found)
