import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdq.quant.packing import PACKED_BITS, pack, packed_row_bytes, unpack


def random_codes(num_bits: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    half = 2 ** (num_bits - 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-half, half, (rows, columns), generator=generator).to(torch.int8)


def bit_stream(codes: np.ndarray, num_bits: int) -> np.ndarray:
    """The layout of the module's docstring, written bit by bit."""
    rows, columns = codes.shape
    out = np.zeros((rows, (columns * num_bits + 7) // 8), dtype=np.uint8)
    for row in range(rows):
        for k in range(columns):
            for bit in range(num_bits):
                position = k * num_bits + bit
                out[row, position // 8] |= ((int(codes[row, k]) >> bit) & 1) << (position % 8)
    return out


@settings(deadline=None, max_examples=150)
@given(
    num_bits=st.sampled_from(PACKED_BITS),
    rows=st.integers(1, 5),
    columns=st.integers(1, 41),
    seed=st.integers(0, 2**31),
)
def test_unpack_undoes_pack(num_bits: int, rows: int, columns: int, seed: int) -> None:
    codes = random_codes(num_bits, rows, columns, seed)
    packed = pack(codes, num_bits)
    assert packed.shape == (rows, packed_row_bytes(columns, num_bits))
    assert packed.is_contiguous()
    assert torch.equal(unpack(packed, num_bits, columns), codes)


@pytest.mark.parametrize("num_bits", range(2, 8))
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 17])
def test_layout_is_the_documented_bit_stream(num_bits: int, columns: int) -> None:
    codes = random_codes(num_bits, 3, columns, seed=columns)
    packed = pack(codes, num_bits)
    assert packed.dtype == torch.uint8
    np.testing.assert_array_equal(packed.numpy(), bit_stream(codes.numpy(), num_bits))


def test_four_bits_hold_the_even_code_in_the_low_half() -> None:
    assert pack(torch.tensor([[1, 2, -1]], dtype=torch.int8), 4).tolist() == [[0x21, 0x0F]]


def test_two_bits_hold_four_codes_from_the_low_end() -> None:
    assert pack(torch.tensor([[1, 0, -2, -1]], dtype=torch.int8), 2).tolist() == [[0b11_10_00_01]]


def test_eight_bits_are_the_codes_themselves() -> None:
    codes = random_codes(8, 2, 3)
    assert pack(codes, 8) is codes
    assert unpack(codes, 8, 3) is codes


@pytest.mark.parametrize("num_bits", PACKED_BITS)
def test_no_rows_are_fine(num_bits: int) -> None:
    codes = random_codes(num_bits, 0, 5)
    assert torch.equal(unpack(pack(codes, num_bits), num_bits, 5), codes)


def test_slices_with_strides_pack_as_their_copies() -> None:
    codes = random_codes(4, 6, 20)
    assert torch.equal(pack(codes[::2, 1::3], 4), pack(codes[::2, 1::3].contiguous(), 4))
    packed = pack(codes, 4)
    wide = torch.cat([packed, packed], dim=1)
    assert torch.equal(unpack(wide[:, : packed.shape[1]], 4, 20), codes)


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit 4 bits"):
        pack(torch.tensor([[8]], dtype=torch.int8), 4)
    with pytest.raises(ValueError, match="int8"):
        pack(torch.tensor([[1]], dtype=torch.int32), 4)
    with pytest.raises(ValueError, match="cannot be packed"):
        pack(torch.tensor([[1]], dtype=torch.int8), 9)


def test_bytes_of_another_width_are_refused() -> None:
    packed = pack(random_codes(3, 2, 10), 3)
    with pytest.raises(ValueError, match="11 codes of 3 bits"):
        unpack(packed, 3, 11)
    with pytest.raises(ValueError, match="int8"):
        unpack(packed, 8, 4)
