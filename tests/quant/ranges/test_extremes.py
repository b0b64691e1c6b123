import pytest
import torch

from mixdq.errors import EmptyRangeError, NonFiniteError
from mixdq.quant.ranges.extremes import empty_range, finite_extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extremes_of_any_float_dtype(dtype: torch.dtype) -> None:
    assert finite_extremes(torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=dtype), "x") == (-2.0, 1.0)


def test_no_elements_have_no_extremes() -> None:
    assert finite_extremes(torch.empty(0, 3), "x") is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_element_among_many_is_named(bad: float) -> None:
    x = torch.zeros(1000)
    x[517] = bad
    with pytest.raises(NonFiniteError, match=r"mid\.ff") as caught:
        finite_extremes(x, "mid.ff")
    assert caught.value.where == "mid.ff"


def test_an_empty_range_names_its_layer() -> None:
    error = empty_range("mid.ff")
    assert isinstance(error, EmptyRangeError)
    assert "mid.ff" in str(error)
