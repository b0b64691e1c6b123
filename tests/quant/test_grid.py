import pytest
import torch

from mixdq.quant.grid import holds, input_spec, largest, num_steps
from mixdq.types.tensors import QuantSpec


@pytest.mark.parametrize("num_bits", range(2, 9))
def test_symmetric_grid_is_its_own_mirror_image(num_bits: int) -> None:
    spec = QuantSpec(num_bits=num_bits, symmetric=True)
    assert spec.code_min == -spec.code_max == -(2 ** (num_bits - 1) - 1)


@pytest.mark.parametrize("num_bits", range(2, 9))
def test_asymmetric_grid_uses_every_code(num_bits: int) -> None:
    spec = QuantSpec(num_bits=num_bits, symmetric=False)
    assert num_steps(spec) == 2**num_bits - 1


def test_holds_exactly_the_codes_of_the_grid() -> None:
    spec = QuantSpec(num_bits=4, symmetric=True)
    assert holds(spec, torch.tensor([-7, 7], dtype=torch.int8))
    assert holds(spec, torch.empty(0, dtype=torch.int8))
    assert not holds(spec, torch.tensor([-8, 7], dtype=torch.int8))
    assert not holds(spec, torch.tensor([8], dtype=torch.int8))


def test_floats_hold_all_codes_but_nan_and_end_at_448() -> None:
    spec = input_spec(8, "float")
    assert spec.symmetric
    assert largest(spec) == 448.0
    codes = torch.arange(-128, 128).to(torch.int8)
    assert holds(spec, codes[(codes & 127) != 127])
    assert not holds(spec, torch.tensor([0, 127], dtype=torch.int8))
    assert not holds(spec, torch.tensor([0, -1], dtype=torch.int8))
    with pytest.raises(ValueError, match="no range"):
        num_steps(spec)


def test_integers_of_inputs_have_zero_points() -> None:
    assert input_spec(4, "int") == QuantSpec(num_bits=4, symmetric=False)
    assert largest(QuantSpec(num_bits=4, symmetric=True)) == 7
