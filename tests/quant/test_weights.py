import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdq.errors import NonFiniteError
from mixdq.quant.grid import holds
from mixdq.quant.packing import packed_row_bytes
from mixdq.quant.weights import dequantize_weight, fake_quantize_weight, quantize_weight, weight_codes


def random_weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SHAPES = st.sampled_from([(3, 5), (4, 6, 3, 3), (1, 2), (2, 7, 1, 1)])


@settings(deadline=None, max_examples=100)
@given(
    shape=SHAPES, num_bits=st.integers(2, 8), symmetric=st.booleans(), cut=st.integers(0, 1), seed=st.integers(0, 99)
)
def test_fake_weight_is_the_packed_one_bit_for_bit(
    shape: tuple[int, ...], num_bits: int, symmetric: bool, cut: int, seed: int
) -> None:
    weight = random_weight(*shape, seed=seed)
    splits = (1, shape[1] - 1) if cut else ()
    parts = quantize_weight(weight, num_bits, symmetric=symmetric, splits=splits)
    real = dequantize_weight(parts)
    assert real.shape == weight.shape
    assert torch.equal(real, fake_quantize_weight(weight, num_bits, symmetric=symmetric, splits=splits))
    for part in parts:
        assert holds(part.qparams.spec, weight_codes(part))
        assert weight_codes(part).shape == part.shape


@pytest.mark.parametrize("num_bits", range(2, 9))
def test_layout_is_the_portable_one(num_bits: int) -> None:
    (part,) = quantize_weight(random_weight(4, 5, 3, 3), num_bits)
    assert part.shape == (4, 5, 3, 3)
    if num_bits == 8:
        assert part.codes.dtype == torch.int8
        assert part.codes.shape == part.shape
    else:
        assert part.codes.dtype == torch.uint8
        assert part.codes.shape == (4, packed_row_bytes(45, num_bits))


def test_each_part_of_a_joined_input_is_quantized_by_itself() -> None:
    weight = random_weight(6, 10, 1, 1)
    weight[:, 4:] *= 100.0
    whole = quantize_weight(weight, 4, splits=(4, 6))
    left, right = quantize_weight(weight[:, :4], 4), quantize_weight(weight[:, 4:], 4)
    for part, alone in zip(whole, left + right, strict=True):
        assert torch.equal(part.codes, alone.codes)
        assert torch.equal(part.qparams.scale, alone.qparams.scale)


def test_joined_parts_beat_one_scale_where_ranges_differ() -> None:
    weight = random_weight(6, 10, 1, 1)
    weight[:, 4:] *= 100.0

    def error_of_small_part(real: torch.Tensor) -> float:
        return float((real - weight)[:, :4].square().mean())

    apart = error_of_small_part(fake_quantize_weight(weight, 4, splits=(4, 6)))
    assert apart < error_of_small_part(fake_quantize_weight(weight, 4)) / 4


def test_more_bits_never_lose_by_the_bound_of_half_a_step() -> None:
    weight = random_weight(8, 64)
    absmax = weight.abs().amax(1, keepdim=True).double()
    for num_bits in range(2, 9):
        error = (fake_quantize_weight(weight, num_bits).double() - weight.double()).abs()
        half_step = 0.5 * absmax / (2 ** (num_bits - 1) - 1)
        assert bool((error <= half_step * (1 + 2 ** (num_bits - 20))).all())


def test_symmetric_weights_equal_a_numpy_oracle() -> None:
    weight = random_weight(5, 33).numpy().astype(np.float64)
    step = np.abs(weight).max(1, keepdims=True) / 7
    (part,) = quantize_weight(torch.from_numpy(weight).float(), 4)
    np.testing.assert_array_equal(weight_codes(part).numpy(), np.rint(weight / step))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_quantized_in_float32(dtype: torch.dtype) -> None:
    weight = random_weight(4, 6).to(dtype)
    (half,), (single,) = quantize_weight(weight, 8), quantize_weight(weight.float(), 8)
    assert torch.equal(half.codes, single.codes)
    assert half.qparams.scale.dtype == torch.float32


def test_a_bad_weight_is_named_and_bad_arguments_are_refused() -> None:
    weight = random_weight(2, 4)
    with pytest.raises(NonFiniteError, match=r"up\.conv"):
        quantize_weight(weight * float("nan"), 8, name="up.conv")
    with pytest.raises(ValueError, match="do not add up to 4"):
        quantize_weight(weight, 8, splits=(1, 2))
    with pytest.raises(ValueError, match="nearest"):
        quantize_weight(weight, 8, rounding="upwards")


def test_a_parameter_can_be_quantized() -> None:
    parameter = torch.nn.Parameter(random_weight(3, 4))
    (part,) = quantize_weight(parameter, 8)
    assert not part.qparams.scale.requires_grad
    assert not dequantize_weight((part,)).requires_grad


@pytest.mark.parametrize("splits", [(), (2, 5)])
def test_floats_are_symmetric_and_packed_as_their_bytes(splits: tuple[int, ...]) -> None:
    weight = random_weight(4, 7)
    parts = quantize_weight(weight, 8, symmetric=False, number="float", splits=splits)
    for part in parts:
        assert (part.codes.dtype, part.codes.shape) == (torch.int8, part.shape)
        assert part.qparams.spec.is_float
        assert part.qparams.zero_point is None
    real = dequantize_weight(parts)
    assert torch.equal(real, fake_quantize_weight(weight, 8, symmetric=False, number="float", splits=splits))
    # Half a step of 4 bits of mantissa, or of the subnormals, and float32's own roundings.
    least = torch.cat([part.qparams.scale.expand(part.shape) for part in parts], dim=1) * 2.0**-10
    assert bool(((real - weight).abs() <= torch.maximum(weight.abs() * 2.0**-4, least) * (1 + 2.0**-18)).all())
    assert not torch.equal(real, fake_quantize_weight(weight, 8, splits=splits))
