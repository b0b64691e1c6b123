import pytest
import torch

from mixdq.quant.grid import holds, num_steps
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
