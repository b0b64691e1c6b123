"""What `benchmarks.unet` compares: name -> a function that loads it and gives back the call to be timed."""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks import sdxl
from mixdq.quant.bos import BosRow
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.linear import QuantizedLinear
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import QParams, QuantSpec

Build = Callable[[torch.dtype], nn.Module]
Loaded = tuple[Callable[[], object], int]
"""The call, and the bytes of the weights that stay in memory."""


class MissingError(Exception):
    """The candidate cannot run here; the text says why."""


def floating(dtype: torch.dtype, *, compiled: bool = False) -> Callable[[Build, int, int], Loaded]:
    """Return the loader of the float model, as it comes or compiled whole."""

    def load(build: Build, batch: int, side: int) -> Loaded:
        model = build(dtype)
        size = sum(parameter.nbytes for parameter in model.parameters())
        call = torch.compile(model) if compiled else model
        arguments = sdxl.inputs(batch, side, dtype)
        return lambda: call(**arguments), size

    return load


def ours(bits: str) -> Callable[[Build, int, int], Loaded]:
    """Return the loader of the model with every layer quantized to `bits`, on our own kernels."""

    def load(build: Build, batch: int, side: int) -> Loaded:
        model = build(torch.bfloat16)
        quantize(model, LayerBits.parse(bits))
        arguments = sdxl.inputs(batch, side, torch.bfloat16)
        size = sum(tensor.nbytes for tensor in model.state_dict().values())
        return lambda: model(**arguments), size

    return load


def quantize(model: nn.Module, bits: LayerBits) -> None:
    """Replace every Linear and Conv2d, one after the other; ranges are made up, for time does not depend on them."""
    spec = QuantSpec(num_bits=8, symmetric=False)
    activation = QParams(scale=torch.tensor(0.05), zero_point=torch.tensor(0, dtype=torch.int32), spec=spec)
    layers = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)}
    for name, module in layers.items():
        bos = None
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            bos = BosRow(input=torch.ones(module.weight.shape[1]), output=torch.zeros(module.weight.shape[0]))
        layout = LayerLayout(name=name, bits=bits, bos=bos is not None)
        parts = quantize_weight(module.weight, bits.weight)
        inputs = None if bits.activation == FLOAT_BITS else [activation]
        if isinstance(module, nn.Linear):
            model.set_submodule(name, QuantizedLinear.from_float(module, layout, parts, inputs, bos, backend="cpu"))
        else:
            model.set_submodule(name, QuantizedConv2d.from_float(module, layout, parts, inputs, backend="cpu"))
        # The float weight goes at once, not when all are done.
        module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)


CANDIDATES: dict[str, Callable[[Build, int, int], Loaded]] = {
    "float32": floating(torch.float32),
    "bfloat16": floating(torch.bfloat16),
    "bfloat16 compiled": floating(torch.bfloat16, compiled=True),
    "W8A8": ours("W8A8"),
    "W4A8": ours("W4A8"),
    "W4A16": ours("W4A16"),
}
