"""The numbers that a quantized tensor may hold: integers in a range, or E4M3 floats.

Not here: what a code stands for (`affine`), how codes lie in bytes (`packing`).
"""

from torch import Tensor

from mixdq.quant import e4m3
from mixdq.types.plan import Number
from mixdq.types.tensors import QuantSpec


def input_spec(num_bits: int, number: Number) -> QuantSpec:
    """Return how inputs are quantized: integers have a zero point, floats none."""
    return QuantSpec(num_bits=num_bits, symmetric=number == "float", number=number)


def largest(spec: QuantSpec) -> float:
    """Return the greatest number of the grid; the least is its negative where the grid is symmetric."""
    return e4m3.GREATEST if spec.is_float else spec.code_max


def num_steps(spec: QuantSpec) -> int:
    """Return the number of steps between the least and the greatest code.

    >>> num_steps(QuantSpec(num_bits=8, symmetric=False))
    255
    """
    return spec.code_max - spec.code_min


def holds(spec: QuantSpec, codes: Tensor) -> bool:
    """Return whether every code lies on the grid of `spec`."""
    if codes.numel() == 0:
        return True
    if spec.is_float:
        return e4m3.are_numbers(codes)
    least, greatest = codes.aminmax()
    return spec.code_min <= int(least) and int(greatest) <= spec.code_max
