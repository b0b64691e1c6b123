"""The oracle is the table of all 256 codes, made from the format's definition in float64, and a search through it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixdq.quant.e4m3 import GREATEST, are_numbers, nearest_codes, real

CODES = torch.arange(256, dtype=torch.uint8).view(torch.int8)


def number(code: int) -> float:
    sign, exponent, mantissa = (-1.0) ** (code >> 7), code >> 3 & 15, code & 7
    if (exponent, mantissa) == (15, 7):
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


NUMBERS = np.array([number(code) for code in range(256)])
FINITE = np.sort(NUMBERS[np.isfinite(NUMBERS)])


def nearest(x: np.ndarray) -> np.ndarray:
    """The number nearest to each of `x`, of two the one whose last bit is 0."""
    codes = np.flatnonzero(np.isfinite(NUMBERS))
    # The first of equals is taken.
    known = NUMBERS[codes[np.argsort(codes % 2, kind="stable")]]
    return known[np.abs(np.clip(x.astype(np.float64), -448.0, 448.0)[:, None] - known).argmin(1)]


def test_all_codes_stand_for_what_the_format_says() -> None:
    found = real(CODES)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), NUMBERS)
    assert np.nanmax(NUMBERS) == GREATEST


def test_every_number_is_its_own_nearest_and_keeps_its_code() -> None:
    numbers = CODES[torch.from_numpy(np.isfinite(NUMBERS))]
    assert torch.equal(nearest_codes(real(numbers)), numbers)


def test_halves_go_to_the_even_mantissa_and_their_neighbours_to_the_nearer_number() -> None:
    # The middles of all neighbours, and the float32 next to each on either side.
    middles = ((FINITE[:-1] + FINITE[1:]) / 2).astype(np.float32)
    for x in (middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf))):
        np.testing.assert_array_equal(real(nearest_codes(torch.from_numpy(x))).numpy(), nearest(x))


@settings(deadline=None, max_examples=100)
@given(
    hnp.arrays(np.float32, 64, elements=st.one_of(st.floats(width=32, allow_nan=False), st.floats(-512, 512, width=32)))
)
def test_any_number_goes_to_the_nearest_and_saturates_beyond(x: np.ndarray) -> None:
    np.testing.assert_array_equal(real(nearest_codes(torch.from_numpy(x))).numpy(), nearest(x))


def test_nan_stays_nan_and_infinity_saturates() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf])
    np.testing.assert_array_equal(real(nearest_codes(x)).numpy(), [np.nan, 448.0, -448.0])


@pytest.mark.parametrize("code", range(256))
def test_nan_is_found_wherever_it_is(code: int) -> None:
    codes = torch.zeros(3, 5, dtype=torch.int8)
    codes[1, 2] = CODES[code]
    assert are_numbers(codes) == bool(np.isfinite(NUMBERS[code]))
