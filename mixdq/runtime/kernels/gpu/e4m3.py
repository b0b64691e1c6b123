"""E4M3 floats in Triton's kernels: `mixdq.quant.e4m3`, by the instructions of cards from compute capability 8.9 on."""

import triton
import triton.language as tl

from mixdq.runtime.kernels.gpu import available

INTERPRETED = tl.constexpr(available.interpreted())


@triton.jit
def nearest_codes(real):
    """Return the codes, int8, of the floats nearest to float32 numbers from -448 to 448, halves to even."""
    if INTERPRETED:
        # Triton's interpreter rounds halves up, and what is subnormal down.
        bits = real.to(tl.int32, bitcast=True)
        power = tl.maximum((bits & 0x7F800000).to(tl.float32, bitcast=True), 0.015625)
        # Float32 ends where the three bits of the mantissa do, after so much is added.
        above = power * 1572864.0
        near = (tl.abs(real) + above) - above
        real = tl.where(bits < 0, -near, near)
    return real.to(tl.float8e4nv).to(tl.int8, bitcast=True)


@triton.jit
def numbers_of(codes):
    """Return the floats that int8 codes stand for, in float32."""
    return codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
