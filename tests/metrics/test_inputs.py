import math

import pytest
import torch

from mixdq.errors import NonFiniteError
from mixdq.metrics.inputs import check_finite, check_pair, check_pictures


def test_good_inputs_pass() -> None:
    x = torch.rand(2, 3, 8, 8)
    check_pair(x, x)
    check_pictures(x.half(), "candidate")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_with_its_sample(value: float) -> None:
    x = torch.rand(4, 3, 8, 8)
    x[2, 1, 0, 0] = value
    with pytest.raises(NonFiniteError, match="candidate: NaN or infinity in 1 of 4 samples, the first is number 2"):
        check_finite(x, "candidate")


def test_empty_and_flat_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        check_pair(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="expected pictures"):
        check_pictures(torch.rand(3, 8, 8), "reference")


def test_rounding_of_half_precision_is_forgiven() -> None:
    check_pictures(torch.full((1, 3, 8, 8), 1.0005), "candidate")
