"""The planes of a weight, by a second reading of their definition: one code at a time, in plain Python."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixdq.quant.packing import pack
from mixdq.runtime.kernels.gpu.weights import FIELDS, WeightOrder, codes_of, packed_rows, planes_of, weight_order


def drawn(num_bits: int, *shape: int) -> torch.Tensor:
    half, generator = 2 ** (num_bits - 1), torch.Generator().manual_seed(num_bits)
    return torch.randint(-half, half, shape, dtype=torch.int8, generator=generator)


def code_in(planes: tuple[torch.Tensor, ...], order: WeightOrder, out: int, tap: int, channel: int) -> int:
    """The code at a place, from the docstring of the module."""
    step, inside = divmod(channel, order.tiles * order.tile)
    tile, at = divmod(inside, order.tile)
    raw = lowest = 0
    for plane, field in zip(planes, order.fields, strict=True):
        shared = 8 // field
        first = (tap * order.tap_steps + step) * order.tiles // shared * order.tile
        byte = int(plane[out, first + tile // shared * order.tile + at]) & 0xFF
        raw |= ((byte >> (field * (tile % shared))) & (2**field - 1)) << lowest
        lowest += field
    return raw - 2**order.num_bits if raw >= 2 ** (order.num_bits - 1) else raw


@pytest.mark.parametrize("num_bits", list(FIELDS))
@pytest.mark.parametrize("zero", [None, -1])
def test_every_code_lies_where_the_product_looks_for_it_and_zeros_beyond(num_bits: int, zero: int | None) -> None:
    codes = drawn(num_bits, 2, 70, 3)
    zeros = None if zero is None else torch.full((2,), zero, dtype=torch.int8)
    order = weight_order(num_bits, 70, 3, of_floats=False)
    planes = planes_of(codes, zeros, order)
    for tap in range(3):
        for channel in range(order.depth):
            wanted = int(codes[1, channel, tap]) if channel < 70 else (zero or 0)
            assert code_in(planes, order, 1, tap, channel) == wanted


@given(
    num_bits=st.sampled_from(list(FIELDS)),
    out=st.integers(1, 5),
    channels=st.integers(1, 300),
    taps=st.integers(1, 9),
    of_floats=st.booleans(),
)
def test_planes_give_the_codes_back_and_take_no_more_bits_than_they_have(num_bits, out, channels, taps, of_floats):
    codes = drawn(num_bits, out, channels, taps)
    order = weight_order(num_bits, channels, taps, of_floats=of_floats)
    planes = planes_of(codes, None, order)
    assert torch.equal(codes_of(planes, order), codes)
    assert sum(plane.nbytes for plane in planes) * 8 == out * taps * order.depth * num_bits


@pytest.mark.parametrize("num_bits", list(FIELDS))
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 333])
def test_packed_rows_are_the_portable_ones(num_bits: int, columns: int) -> None:
    codes = drawn(num_bits, 3, columns)
    assert torch.equal(packed_rows(codes, num_bits), pack(codes, num_bits))


@pytest.mark.parametrize("channels", [320, 640, 1280, 2048, 2560, 2816, 5120, 10240])
@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_no_layer_of_sdxl_is_filled_up_much(channels: int, num_bits: int) -> None:
    depth = weight_order(num_bits, channels, 1, of_floats=False).depth
    assert depth <= channels * 1.2
    assert num_bits == 2 or channels % 64 or depth == channels
