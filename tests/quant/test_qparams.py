import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.ao.quantization.observer import PerChannelMinMaxObserver

from mixdq.errors import NonFiniteError
from mixdq.quant.affine import dequantize, quantize
from mixdq.quant.qparams import LEAST_SCALE, activation_qparams, row_qparams, weight_qparams
from mixdq.types.tensors import ActivationRange, QuantSpec

WIDTHS = st.integers(2, 8)
WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@settings(deadline=None, max_examples=80)
@given(weight=WEIGHTS, num_bits=WIDTHS, symmetric=st.booleans())
def test_scales_are_positive_and_finite_and_zero_points_are_codes(
    weight: np.ndarray, num_bits: int, symmetric: bool
) -> None:
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0)
    qparams = weight_qparams(torch.from_numpy(weight), spec)
    assert qparams.scale.dtype == torch.float32
    assert qparams.scale.shape == (weight.shape[0],) + (1,) * (weight.ndim - 1)
    assert bool((torch.isfinite(qparams.scale) & (qparams.scale > 0)).all())
    assert (qparams.zero_point is None) == symmetric
    if qparams.zero_point is not None:
        assert qparams.zero_point.dtype == torch.int32
        assert qparams.zero_point.shape == qparams.scale.shape
        assert spec.code_min <= int(qparams.zero_point.min())
        assert int(qparams.zero_point.max()) <= spec.code_max


@settings(deadline=None, max_examples=80)
@given(weight=WEIGHTS, num_bits=WIDTHS, symmetric=st.booleans())
def test_weight_scale_is_the_extremes_over_the_grid_in_float64(
    weight: np.ndarray, num_bits: int, symmetric: bool
) -> None:
    scale = weight_qparams(
        torch.from_numpy(weight), QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0)
    ).scale.flatten()
    rows = weight.astype(np.float64).reshape(weight.shape[0], -1)
    if symmetric:
        wanted = np.abs(rows).max(1) / (2 ** (num_bits - 1) - 1)
    else:
        wanted = (np.maximum(rows.max(1), 0) - np.minimum(rows.min(1), 0)) / (2**num_bits - 1)
    wanted = np.where(wanted == 0, 1.0, np.maximum(wanted, LEAST_SCALE))
    # One rounding to float32.
    np.testing.assert_allclose(scale.numpy().astype(np.float64), wanted, rtol=2**-24)


@settings(deadline=None, max_examples=50)
@given(weight=WEIGHTS, num_bits=WIDTHS, symmetric=st.booleans())
def test_a_channel_does_not_depend_on_the_others(weight: np.ndarray, num_bits: int, symmetric: bool) -> None:
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0)
    together = weight_qparams(torch.from_numpy(weight), spec)
    for row in range(weight.shape[0]):
        alone = weight_qparams(torch.from_numpy(weight[row : row + 1]), spec)
        assert torch.equal(alone.scale[0], together.scale[row])
        if together.zero_point is not None and alone.zero_point is not None:
            assert torch.equal(alone.zero_point[0], together.zero_point[row])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", [4, 8])
def test_agrees_with_the_observer_of_torch(num_bits: int, symmetric: bool) -> None:
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.3
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, channel_axis=0)
    observer = PerChannelMinMaxObserver(
        ch_axis=0,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric if symmetric else torch.per_channel_affine,
        quant_min=spec.code_min,
        quant_max=spec.code_max,
    )
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    ours = weight_qparams(weight, spec)
    # Theirs is computed in float32: two roundings more.
    torch.testing.assert_close(ours.scale.flatten(), scale.float(), rtol=2**-22, atol=0)
    if ours.zero_point is not None:
        assert ours.zero_point.flatten().tolist() == zero_point.tolist()


def test_any_axis_may_carry_the_channels() -> None:
    weight = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(1))
    along = weight_qparams(weight, QuantSpec(num_bits=8, symmetric=False, channel_axis=1))
    moved = weight_qparams(weight.movedim(1, 0), QuantSpec(num_bits=8, symmetric=False, channel_axis=0))
    assert along.scale.shape == (1, 5, 1)
    assert torch.equal(along.scale.flatten(), moved.scale.flatten())
    whole = weight_qparams(weight, QuantSpec(num_bits=8, symmetric=True))
    assert whole.scale.shape == ()
    assert whole.scale.item() == pytest.approx(weight.abs().max().item() / 127, rel=2**-23)


def test_a_channel_of_zeros_has_scale_one() -> None:
    weight = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    for symmetric in (True, False):
        scale = weight_qparams(weight, QuantSpec(num_bits=8, symmetric=symmetric, channel_axis=0)).scale
        assert scale[0].item() == 1.0


@pytest.mark.parametrize("largest", [torch.finfo(torch.float32).max, 1e-45, 1e-38])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_ends_of_float32_give_a_usable_scale(largest: float, symmetric: bool) -> None:
    weight = torch.tensor([[largest, -largest]])
    scale = weight_qparams(weight, QuantSpec(num_bits=8, symmetric=symmetric, channel_axis=0)).scale
    assert math.isfinite(scale.item())
    assert scale.item() >= LEAST_SCALE


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(bad: float) -> None:
    weight = torch.ones(2, 3)
    weight[1, 2] = bad
    with pytest.raises(NonFiniteError, match=r"mid\.to_q") as caught:
        weight_qparams(weight, QuantSpec(num_bits=8, symmetric=True, channel_axis=0), name="mid.to_q")
    assert caught.value.where == "mid.to_q"


def test_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="group_size"):
        weight_qparams(torch.ones(2, 4), QuantSpec(num_bits=4, symmetric=True, channel_axis=0, group_size=2))


RANGES = st.tuples(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30)).map(
    lambda ends: ActivationRange(min=min(ends), max=max(ends), batches=1)
)


@settings(deadline=None, max_examples=200)
@given(rng=RANGES, num_bits=WIDTHS)
def test_zero_is_an_activation_code_exactly(rng: ActivationRange, num_bits: int) -> None:
    qparams = activation_qparams(rng, num_bits)
    assert qparams.zero_point is not None
    assert qparams.scale.shape == qparams.zero_point.shape == ()
    assert dequantize(quantize(torch.zeros(1), qparams), qparams).item() == 0.0


@settings(deadline=None, max_examples=200)
@given(rng=RANGES, num_bits=WIDTHS)
def test_activation_grid_reaches_the_range_within_half_a_step(rng: ActivationRange, num_bits: int) -> None:
    qparams = activation_qparams(rng, num_bits)
    assert qparams.zero_point is not None
    scale, zero_point = float(qparams.scale), int(qparams.zero_point)
    # Half a step, and the rounding of the scale to float32 over all steps.
    slack = scale * (0.5 + 2**num_bits * 2**-23)
    assert (qparams.spec.code_min - zero_point) * scale <= min(rng.min, 0.0) + slack
    assert (qparams.spec.code_max - zero_point) * scale >= max(rng.max, 0.0) - slack


def test_a_degenerate_range_has_a_safe_scale() -> None:
    assert activation_qparams(ActivationRange(min=0.0, max=0.0, batches=1), 8).scale.item() == 1.0
    tiny = activation_qparams(ActivationRange(min=0.0, max=1e-44, batches=1), 8)
    assert tiny.scale.item() >= LEAST_SCALE
    huge = activation_qparams(ActivationRange(min=-1e300, max=1e300, batches=1), 8)
    assert math.isfinite(huge.scale.item())


@settings(deadline=None, max_examples=120)
@given(
    x=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=st.floats(width=32, allow_nan=False)
    ).map(lambda x: np.where(np.isinf(x), np.float32(3.0e38), x)),
    num_bits=WIDTHS,
    data=st.data(),
)
def test_a_rows_scale_is_what_calibration_would_make_of_its_range(x: np.ndarray, num_bits: int, data) -> None:
    axes = data.draw(st.integers(1, x.ndim - 1))
    found = row_qparams(torch.from_numpy(x), num_bits, axes=axes)
    shape = x.shape[: x.ndim - axes] + (1,) * axes
    assert found.zero_point is not None
    assert found.scale.shape == found.zero_point.shape == shape
    assert (found.scale.dtype, found.zero_point.dtype) == (torch.float32, torch.int32)
    rows = x.reshape(math.prod(shape), -1)
    for row, scale, zero_point in zip(rows, found.scale.flatten(), found.zero_point.flatten(), strict=True):
        known = ActivationRange(min=float(row.min()), max=float(row.max()), batches=1)
        wanted = activation_qparams(known, num_bits)
        assert wanted.zero_point is not None
        assert (float(scale), int(zero_point)) == (float(wanted.scale), int(wanted.zero_point))


@settings(deadline=None, max_examples=60)
@given(
    x=hnp.arrays(np.float32, (3, 7), elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)),
    num_bits=WIDTHS,
)
def test_no_number_of_a_row_is_off_by_more_than_a_step(x: np.ndarray, num_bits: int) -> None:
    real = torch.from_numpy(x)
    qparams = row_qparams(real, num_bits, axes=1)
    back = dequantize(quantize(real, qparams), qparams)
    # Half a step of the number's own rounding, half a step of the zero point's, and float32's own.
    off = (back.double() - real.double()).abs()
    assert bool((off <= qparams.scale.double() * (1.0 + 2**-12)).all())
    assert bool((back[real == 0.0] == 0.0).all())


def test_rows_without_numbers_have_a_scale_all_the_same() -> None:
    found = row_qparams(torch.empty(2, 4, 0, 3), 8, axes=3)
    assert found.scale.flatten().tolist() == [1.0, 1.0]
    assert row_qparams(torch.empty(0, 5), 8, axes=1).scale.shape == (0, 1)


@settings(deadline=None, max_examples=80)
@given(weight=WEIGHTS)
def test_floats_reach_from_the_largest_magnitude_to_its_negative(weight: np.ndarray) -> None:
    qparams = weight_qparams(
        torch.from_numpy(weight), QuantSpec(num_bits=8, symmetric=True, channel_axis=0, number="float")
    )
    most = np.abs(weight.astype(np.float64)).reshape(weight.shape[0], -1).max(1)
    wanted = np.where(most == 0, 1.0, np.maximum(most / 448, LEAST_SCALE))
    np.testing.assert_allclose(qparams.scale.numpy().ravel().astype(np.float64), wanted, rtol=2**-24)
    assert qparams.zero_point is None
    rows = row_qparams(torch.from_numpy(weight), 8, axes=weight.ndim - 1, number="float")
    assert rows.zero_point is None
    assert torch.equal(rows.scale, qparams.scale)
    for row, scale in zip(weight, rows.scale.flatten(), strict=True):
        known = ActivationRange(min=float(row.min()), max=float(row.max()), batches=1)
        made = activation_qparams(known, 8, "float")
        assert (made.zero_point, float(made.scale)) == (None, float(scale))
