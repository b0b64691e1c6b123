import numpy as np
import pytest
import torch

from mixdq.errors import EmptyRangeError, NonFiniteError
from mixdq.quant.ranges import ESTIMATORS
from mixdq.quant.ranges.minmax import MinMax

EVERY = pytest.mark.parametrize("kind", sorted(ESTIMATORS))


def heavy_tails(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_t(3, size=(4, 500)).astype(np.float32))


def test_range_is_the_extremes_of_all_batches() -> None:
    batches = [heavy_tails(seed) for seed in range(5)]
    estimator = MinMax()
    for batch in batches:
        estimator.update(batch)
    found, everything = estimator.result(), torch.cat(batches)
    assert (found.min, found.max, found.batches) == (everything.min().item(), everything.max().item(), 5)


@EVERY
def test_every_estimate_lies_within_the_extremes(kind: str) -> None:
    estimator, widest = ESTIMATORS[kind](), MinMax()
    for seed in range(4):
        estimator.update(heavy_tails(seed))
        widest.update(heavy_tails(seed))
    found, outer = estimator.result(), widest.result()
    assert outer.min <= found.min <= found.max <= outer.max
    assert found.batches == 4


@EVERY
@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-30])
def test_a_constant_input_has_its_own_value_as_range(kind: str, value: float) -> None:
    estimator = ESTIMATORS[kind]()
    estimator.update(torch.full((3, 3), value))
    found = estimator.result()
    assert found.min == found.max == pytest.approx(value, rel=2**-23)


@EVERY
def test_without_data_there_is_no_range(kind: str) -> None:
    estimator = ESTIMATORS[kind]("down.conv")
    estimator.update(torch.empty(0, 4))
    with pytest.raises(EmptyRangeError, match=r"down\.conv"):
        estimator.result()


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_is_named_and_not_counted(kind: str, bad: float) -> None:
    estimator = ESTIMATORS[kind]("down.conv")
    estimator.update(torch.tensor([-1.0, 1.0]))
    before = estimator.result()
    with pytest.raises(NonFiniteError, match=r"down\.conv"):
        estimator.update(torch.tensor([bad, 1.0]))
    assert estimator.result() == before


@EVERY
def test_strides_and_dtypes_do_not_matter(kind: str) -> None:
    x = heavy_tails(0).to(torch.bfloat16)
    plain, strided, single = (ESTIMATORS[kind]() for _ in range(3))
    plain.update(x)
    strided.update(x.t())
    single.update(x.float())
    assert plain.result() == strided.result() == single.result()
