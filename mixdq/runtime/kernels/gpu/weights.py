"""The order in which a GPU's products read a weight: planes of fields, a tile of input channels beside another.

A code of b bits is cut into fields of 4, 2 and 1 bits, and each field is packed in a plane of its own, so that every
width takes b bits. Along the depth of a sum (the window's positions, and the input channels of each, filled up) lie
steps of `tiles` tiles of `tile` channels. A byte of a plane has the fields of one channel in each of 8 / field tiles,
the first in its low bits: shifts and masks give whole tiles, which the matrix units take as they are, and no code
crosses to another thread. At 8 bits the only plane is the codes.

    plane of f bits  int8 [out, taps * steps * tiles * f / 8 * tile]

Plain torch, on any device, and nothing waits for the device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

FIELDS = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
"""Width of a code -> widths of its fields, the least significant first."""
TILES = (128, 64, 32)
"""Channels of a tile, the preferred first; no int8 product of the matrix units is shallower than 32."""
PACKED_TILES = (64, 32)


@dataclass(frozen=True, kw_only=True)
class WeightOrder:
    """How codes [out, channels, taps] lie.

    Attributes:
        num_bits: of a code.
        channels: input channels (of one group).
        taps: positions of the window.
        tile: channels of a tile.
    """

    num_bits: int
    channels: int
    taps: int
    tile: int

    @property
    def fields(self) -> tuple[int, ...]:
        """The widths of a code's fields."""
        return FIELDS[self.num_bits]

    @property
    def tiles(self) -> int:
        """Tiles of a step: as many as share a byte of the narrowest field."""
        return 8 // min(self.fields)

    @property
    def tap_steps(self) -> int:
        """Steps of one position of the window."""
        return -(-self.channels // (self.tiles * self.tile))

    @property
    def depth(self) -> int:
        """Channels of one position, filled up to whole steps."""
        return self.tap_steps * self.tiles * self.tile


def weight_order(num_bits: int, channels: int, taps: int, *, of_floats: bool) -> WeightOrder:
    """Return the order of the largest tile among those that are filled up least.

    `of_floats`: the input stays in floating point, whose tiles are at most 64 channels, for they take more bytes.
    """
    sizes = TILES if num_bits == 8 and not of_floats else PACKED_TILES
    orders = [WeightOrder(num_bits=num_bits, channels=channels, taps=taps, tile=tile) for tile in sizes]
    return min(orders, key=lambda order: order.depth)


def planes_of(codes: Tensor, zero_points: Tensor | None, order: WeightOrder) -> tuple[Tensor, ...]:
    """Return the planes of int8 codes [out, channels, taps]; what is filled up has the code of zero.

    `zero_points` is int8 [out], None where symmetric.
    """
    out = len(codes)
    codes = codes.transpose(1, 2)
    missing = order.depth - order.channels
    if missing:
        fill = codes.new_zeros(out, 1, 1) if zero_points is None else zero_points.view(-1, 1, 1)
        codes = torch.cat([codes, fill.expand(out, order.taps, missing)], dim=2)
    if order.num_bits == 8:
        return (codes.reshape(out, -1).contiguous(),)
    raw = codes.contiguous().view(torch.uint8).reshape(out, -1, order.tiles, order.tile)
    planes, lowest = [], 0
    for field in order.fields:
        parts = ((raw >> lowest) & (2**field - 1)).unflatten(2, (-1, 8 // field))
        plane = parts[:, :, :, 0].clone()
        for j in range(1, 8 // field):
            plane |= parts[:, :, :, j] << (field * j)
        planes.append(plane.reshape(out, -1).view(torch.int8))
        lowest += field
    return tuple(planes)


def codes_of(planes: tuple[Tensor, ...], order: WeightOrder) -> Tensor:
    """Return the int8 codes [out, channels, taps] that `planes_of` made planes of."""
    out = len(planes[0])
    if order.num_bits == 8:
        codes = planes[0]
    else:
        shape = (out, -1, order.tiles, order.tile)
        raw, lowest = torch.zeros((), dtype=torch.uint8, device=planes[0].device), 0
        for plane, field in zip(planes, order.fields, strict=True):
            packed = plane.view(torch.uint8).reshape(out, -1, 1, order.tile)
            parts = torch.cat([(packed >> (field * j)) & (2**field - 1) for j in range(8 // field)], dim=2)
            raw = raw | (parts.reshape(shape) << lowest)
            lowest += field
        # Up to the sign bit, and back with the sign.
        codes = (raw << (8 - order.num_bits)).view(torch.int8) >> (8 - order.num_bits)
    codes = codes.reshape(out, order.taps, order.depth)[:, :, : order.channels]
    return codes.transpose(1, 2).contiguous()


def packed_rows(codes: Tensor, num_bits: int) -> Tensor:
    """Return what `mixdq.quant.packing.pack` does of codes [rows, columns] that fit, without asking whether they do."""
    if num_bits == 8:
        return codes
    rows, columns = codes.shape
    raw = functional.pad(codes.view(torch.uint8) & (2**num_bits - 1), (0, -columns % 8)).reshape(rows, -1, 8)
    stream = torch.zeros(*raw.shape[:2], num_bits, dtype=torch.uint8, device=codes.device)
    for k in range(8):
        byte, bit = divmod(k * num_bits, 8)
        stream[..., byte] |= raw[..., k] << bit
        if bit + num_bits > 8:
            stream[..., byte + 1] |= raw[..., k] >> (8 - bit)
    return stream.reshape(rows, -1)[:, : (columns * num_bits + 7) // 8].contiguous()
