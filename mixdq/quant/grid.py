"""The integers that a quantized tensor may hold.

Not here: what a code stands for (`affine`), how codes lie in bytes (`packing`).
"""

from torch import Tensor

from mixdq.types.tensors import QuantSpec


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
    least, greatest = codes.aminmax()
    return spec.code_min <= int(least) and int(greatest) <= spec.code_max
