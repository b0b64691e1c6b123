"""How a weight becomes codes once its scale is known, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from mixdq.quant.rounding.nearest import nearest
from mixdq.types.tensors import QParams

Rounding = Callable[[Tensor, QParams], Tensor]
"""Takes a weight and its scales; gives int8 codes on the grid, of the weight's shape."""

ROUNDINGS: Mapping[str, Rounding] = MappingProxyType({"nearest": nearest})
