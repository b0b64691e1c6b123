"""Codes of 2 to 8 bits as bytes, and back: the portable layout that is saved.

Each row is one little-endian bit stream. A code of b bits is kept as the low b bits of its two's complement; code k of
a row occupies bits k*b to k*b + b - 1 of the row's stream, and bit i of the stream is bit i % 8 (0 the least
significant) of byte i // 8. Every row begins on a byte of its own; the unused bits of its last byte are 0. So at
4 bits byte j holds code 2j in its low and code 2j + 1 in its high half, at 2 bits four codes from the low end up; a
3-bit code may straddle two bytes. At 8 bits nothing changes: the packed form is the int8 codes themselves.

Not here: what the codes stand for (`affine`), which tensors are packed (`weights`).
"""

import torch
from torch import Tensor

PACKED_BITS: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)

# Eight codes of b bits fill b bytes exactly, and fit one int64.
_BLOCK = 8


def packed_row_bytes(columns: int, num_bits: int) -> int:
    """Return the bytes that a row of `columns` codes takes: ceil(columns * num_bits / 8).

    >>> packed_row_bytes(5, 3)
    2
    """
    return (columns * num_bits + 7) // 8


def pack(codes: Tensor, num_bits: int) -> Tensor:
    """Return int8 codes [rows, K] as uint8 [rows, ceil(K * num_bits / 8)]; at 8 bits, the codes as they are.

    Raises:
        ValueError: not int8 of two dimensions, or a code does not fit `num_bits`.

    >>> pack(torch.tensor([[1, -2, 7]], dtype=torch.int8), 4).tolist()
    [[225, 7]]
    """
    _check_bits(num_bits)
    if codes.dtype != torch.int8 or codes.dim() != 2:
        raise ValueError(f"packing takes int8 [rows, columns], not {codes.dtype} {list(codes.shape)}")
    if num_bits == 8:
        return codes
    half = 2 ** (num_bits - 1)
    if codes.numel() and not (-half <= int(codes.min()) and int(codes.max()) < half):
        raise ValueError(f"codes {int(codes.min())} to {int(codes.max())} do not fit {num_bits} bits")
    rows, columns = codes.shape
    blocks = -(-columns // _BLOCK)
    padded = torch.nn.functional.pad(codes, (0, blocks * _BLOCK - columns)).reshape(rows, blocks, _BLOCK)
    words = torch.zeros(rows, blocks, dtype=torch.int64, device=codes.device)
    for k in range(_BLOCK):
        words |= (padded[..., k].to(torch.int64) & (2**num_bits - 1)) << (k * num_bits)
    stream = torch.stack([(words >> (8 * j)) & 0xFF for j in range(num_bits)], dim=-1).to(torch.uint8)
    return stream.reshape(rows, blocks * num_bits)[:, : packed_row_bytes(columns, num_bits)].contiguous()


def unpack(packed: Tensor, num_bits: int, columns: int) -> Tensor:
    """Return the int8 codes [rows, columns] that `pack` made bytes of.

    Raises:
        ValueError: dtype or width of `packed` is not what `pack` gives for that many columns.

    >>> unpack(torch.tensor([[225, 7]], dtype=torch.uint8), 4, 3).tolist()
    [[1, -2, 7]]
    """
    _check_bits(num_bits)
    dtype = torch.int8 if num_bits == 8 else torch.uint8
    width = packed_row_bytes(columns, num_bits)
    if packed.dtype != dtype or packed.dim() != 2 or packed.shape[1] != width:
        raise ValueError(
            f"{columns} codes of {num_bits} bits are {dtype} [rows, {width}], not {packed.dtype} {list(packed.shape)}"
        )
    if num_bits == 8:
        return packed
    rows = packed.shape[0]
    blocks = -(-columns // _BLOCK)
    padded = torch.nn.functional.pad(packed, (0, blocks * num_bits - width)).reshape(rows, blocks, num_bits)
    words = torch.zeros(rows, blocks, dtype=torch.int64, device=packed.device)
    for j in range(num_bits):
        words |= padded[..., j].to(torch.int64) << (8 * j)
    codes = torch.empty(rows, blocks, _BLOCK, dtype=torch.int8, device=packed.device)
    for k in range(_BLOCK):
        # Up to the sign bit, and back with the sign.
        codes[..., k] = (words << (64 - num_bits * (k + 1))) >> (64 - num_bits)
    return codes.reshape(rows, blocks * _BLOCK)[:, :columns].contiguous()


def _check_bits(num_bits: int) -> None:
    if num_bits not in PACKED_BITS:
        raise ValueError(f"{num_bits} bits cannot be packed: expected one of {PACKED_BITS}")
