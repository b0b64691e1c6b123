import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixdq.quant.affine import dequantize, fake_quantize, quantize
from mixdq.quant.grid import holds
from mixdq.quant.qparams import activation_qparams, weight_qparams
from mixdq.types.tensors import ActivationRange, QuantSpec

WEIGHTS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=6), elements=st.floats(-1e4, 1e4, width=32)
)


@settings(deadline=None, max_examples=100)
@given(weight=WEIGHTS, num_bits=st.integers(2, 8), symmetric=st.booleans())
def test_error_is_at_most_half_a_step_inside_the_range(weight: np.ndarray, num_bits: int, symmetric: bool) -> None:
    x = torch.from_numpy(weight)
    qparams = weight_qparams(x, QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0))
    error = (fake_quantize(x, qparams).double() - x.double()).abs()
    # Half a step; and the division, the scale and the product each round once, at most 2^b steps from zero.
    assert bool((error <= qparams.scale.double() * (0.5 + 3 * 2**num_bits * 2**-24)).all())


@settings(deadline=None, max_examples=100)
@given(weight=WEIGHTS, num_bits=st.integers(2, 8), symmetric=st.booleans())
def test_codes_are_those_of_a_float64_oracle(weight: np.ndarray, num_bits: int, symmetric: bool) -> None:
    x = torch.from_numpy(weight)
    qparams = weight_qparams(x, QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0))
    codes = quantize(x, qparams)
    assert codes.dtype == torch.int8
    assert holds(qparams.spec, codes)
    zero_point = 0.0 if qparams.zero_point is None else qparams.zero_point.numpy().astype(np.float64)
    exact = weight.astype(np.float64) / qparams.scale.numpy().astype(np.float64) + zero_point
    clipped = np.clip(exact, qparams.spec.code_min, qparams.spec.code_max)
    # The nearest code, but for ties within one float32 rounding of the quotient.
    assert np.all(np.abs(codes.numpy() - clipped) <= 0.5 + 2**num_bits * 2**-24)


@settings(deadline=None, max_examples=100)
@given(
    x=WEIGHTS,
    num_bits=st.integers(2, 8),
    symmetric=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_fake_quantize_is_dequantize_of_quantize(
    x: np.ndarray, num_bits: int, symmetric: bool, dtype: torch.dtype
) -> None:
    tensor = torch.from_numpy(x).to(dtype)
    qparams = weight_qparams(tensor, QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0))
    fake = fake_quantize(tensor, qparams)
    real = dequantize(quantize(tensor, qparams), qparams)
    assert real.dtype == torch.float32
    assert fake.dtype == dtype
    assert torch.equal(fake.view(torch.uint8), real.to(dtype).view(torch.uint8))


@settings(deadline=None, max_examples=60)
@given(weight=WEIGHTS, num_bits=st.integers(2, 8), symmetric=st.booleans())
def test_zero_comes_back_as_zero(weight: np.ndarray, num_bits: int, symmetric: bool) -> None:
    x = torch.from_numpy(weight)
    qparams = weight_qparams(x, QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0))
    assert torch.equal(fake_quantize(torch.zeros_like(x), qparams), torch.zeros_like(x))


@settings(deadline=None, max_examples=60)
@given(weight=WEIGHTS, num_bits=st.integers(2, 8))
def test_symmetric_quantization_is_odd(weight: np.ndarray, num_bits: int) -> None:
    x = torch.from_numpy(weight)
    qparams = weight_qparams(x, QuantSpec(num_bits=num_bits, symmetric=True, channel_axis=0))
    assert torch.equal(quantize(-x, qparams), -quantize(x, qparams))


@pytest.mark.parametrize("num_bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantizing_twice_changes_nothing(num_bits: int, symmetric: bool) -> None:
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(num_bits))
    qparams = weight_qparams(x, QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0))
    once = fake_quantize(x, qparams)
    assert torch.equal(fake_quantize(once, qparams), once)


@pytest.mark.parametrize("num_bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_agrees_with_fake_quantize_of_torch_but_for_ties(num_bits: int, symmetric: bool) -> None:
    x = torch.randn(12, 7, 3, 3, generator=torch.Generator().manual_seed(3))
    qparams = weight_qparams(x, QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0))
    scale = qparams.scale.flatten()
    zero_point = torch.zeros_like(scale) if qparams.zero_point is None else qparams.zero_point.flatten().float()
    theirs = torch.fake_quantize_per_channel_affine(
        x, scale, zero_point.to(torch.int32), 0, qparams.spec.code_min, qparams.spec.code_max
    )
    # torch multiplies by 1 / scale: elements within rounding of a tie may take the neighbouring code.
    tie = ((x / qparams.scale).frac().abs() - 0.5).abs() < 2**num_bits * 2**-22
    assert torch.equal(fake_quantize(x, qparams)[~tie], theirs[~tie])
    assert int(tie.sum()) < 5


@pytest.mark.parametrize("num_bits", [4, 8])
def test_activations_agree_with_torch_but_for_ties(num_bits: int) -> None:
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(4)) * 3 + 1
    qparams = activation_qparams(ActivationRange(min=-4.0, max=6.0, batches=1), num_bits)
    assert qparams.zero_point is not None
    theirs = torch.fake_quantize_per_tensor_affine(
        x, qparams.scale, qparams.zero_point, qparams.spec.code_min, qparams.spec.code_max
    )
    tie = ((x / qparams.scale).frac().abs() - 0.5).abs() < 2**num_bits * 2**-22
    assert torch.equal(fake_quantize(x, qparams)[~tie], theirs[~tie])


def test_values_beyond_the_range_saturate() -> None:
    qparams = activation_qparams(ActivationRange(min=-1.0, max=1.0, batches=1), 8)
    codes = quantize(torch.tensor([-1e30, float("-inf"), 1e30, float("inf")]), qparams)
    assert codes.tolist() == [-128, -128, 127, 127]


def test_a_slice_with_strides_equals_its_copy() -> None:
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(5))
    qparams = activation_qparams(ActivationRange(min=-2.0, max=2.0, batches=1), 8)
    for piece in (x[:, 1:, :], x[..., ::2], x.transpose(1, 2)):
        assert torch.equal(quantize(piece, qparams), quantize(piece.contiguous(), qparams))
        assert torch.equal(fake_quantize(piece, qparams), fake_quantize(piece.contiguous(), qparams))


def test_the_input_is_left_alone() -> None:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(6))
    before = x.clone()
    qparams = weight_qparams(x, QuantSpec(num_bits=4, symmetric=False, channel_axis=0))
    codes = quantize(x, qparams)
    kept = codes.clone()
    fake_quantize(x, qparams)
    dequantize(codes, qparams)
    assert torch.equal(x, before)
    assert torch.equal(codes, kept)


def test_float16_saturates_instead_of_overflowing() -> None:
    x = torch.tensor([-1.0, 65504.0], dtype=torch.float16)
    qparams = weight_qparams(x, QuantSpec(num_bits=2, symmetric=False))
    assert bool(torch.isfinite(fake_quantize(x, qparams)).all())


def test_nan_stays_nan_where_no_code_is_needed() -> None:
    qparams = activation_qparams(ActivationRange(min=-1.0, max=1.0, batches=1), 8)
    assert bool(torch.isnan(fake_quantize(torch.tensor([float("nan")]), qparams)).all())


FLOATS = QuantSpec(num_bits=8, symmetric=True, channel_axis=0, number="float")


@settings(deadline=None, max_examples=100)
@given(x=WEIGHTS, dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_floats_are_near_and_fake_quantizing_them_is_dequantize_of_quantize(x: np.ndarray, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(x).to(dtype)
    qparams = weight_qparams(tensor, FLOATS)
    codes = quantize(tensor, qparams)
    assert codes.dtype == torch.int8
    assert holds(qparams.spec, codes)
    fake, found = fake_quantize(tensor, qparams), dequantize(codes, qparams)
    assert torch.equal(fake.view(torch.uint8), found.to(dtype).view(torch.uint8))
    # 4 bits of mantissa, and below 2^-6 steps of 2^-9; the division, the scale and the product each round once.
    exact, scale = tensor.double(), qparams.scale.double()
    bound = torch.maximum(exact.abs() * 2.0**-4, scale * 2.0**-10) * (1 + 2.0**-18) + 2.0**-149
    assert bool(((found.double() - exact).abs() <= bound).all())
    assert torch.equal(fake_quantize(found, qparams), found)


def test_floats_keep_nan_where_no_code_is_needed_and_saturate() -> None:
    qparams = activation_qparams(ActivationRange(min=-1.0, max=3.5, batches=1), 8, "float")
    found = fake_quantize(torch.tensor([torch.nan, torch.inf, -9.0]), qparams)
    assert bool(found[0].isnan())
    assert found[1:].tolist() == [3.5, -3.5]
