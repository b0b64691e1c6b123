import pytest
import torch

from mixdq.quant.affine import dequantize
from mixdq.quant.grid import holds
from mixdq.quant.qparams import weight_qparams
from mixdq.quant.rounding import ROUNDINGS
from mixdq.quant.rounding.nearest import nearest
from mixdq.types.tensors import QuantSpec


@pytest.mark.parametrize("name", sorted(ROUNDINGS))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", range(2, 9))
def test_every_rounding_gives_codes_of_the_grid(name: str, symmetric: bool, num_bits: int) -> None:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(num_bits))
    qparams = weight_qparams(weight, QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0))
    codes = ROUNDINGS[name](weight, qparams)
    assert codes.dtype == torch.int8
    assert codes.shape == weight.shape
    assert holds(qparams.spec, codes)


def test_no_neighbouring_code_is_nearer() -> None:
    weight = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    qparams = weight_qparams(weight, QuantSpec(num_bits=4, symmetric=False, channel_axis=0))
    codes = nearest(weight, qparams)
    error = (dequantize(codes, qparams) - weight).abs()
    for move in (-1, 1):
        moved = (codes + move).clamp(qparams.spec.code_min, qparams.spec.code_max)
        # A tie is decided to within the rounding of one product.
        assert bool((error <= (dequantize(moved, qparams) - weight).abs() + 1e-6).all())
