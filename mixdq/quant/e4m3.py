"""E4M3, the 8-bit floats that FP8 hardware multiplies (OCP 8-bit Floating Point Specification 1.0), and their codes.

A sign, 4 bits of exponent with a bias of 7, and 3 of mantissa: from 2^-9, the least subnormal, to 448. There is no
infinity; all bits set but the sign are NaN. A code is such a byte, held as int8.
"""

import torch
from torch import Tensor

GREATEST = 448.0
_NAN = 0x7F


def nearest_codes(x: Tensor) -> Tensor:
    """Return the codes, int8, of the floats nearest to `x` float32, halves to the one of even mantissa.

    What lies beyond the greatest float, infinity too, becomes that; NaN stays NaN.

    >>> real(nearest_codes(torch.tensor([0.3, 17.0, -1000.0]))).tolist()
    [0.3125, 16.0, -448.0]
    """
    # By themselves, earlier versions of torch make NaN of what lies beyond.
    return x.clamp(-GREATEST, GREATEST).to(torch.float8_e4m3fn).view(torch.int8)


def real(codes: Tensor) -> Tensor:
    """Return the floats that codes stand for, in float32."""
    return codes.view(torch.float8_e4m3fn).to(torch.float32)


def are_numbers(codes: Tensor) -> bool:
    """Return whether no code is NaN's."""
    return not bool(((codes & _NAN) == _NAN).any())
