"""What `benchmarks.unet` compares: name -> how it is loaded. Floating point and ours here, others in `peers`."""

from collections.abc import Callable
from itertools import cycle

import torch
from torch import nn

from benchmarks.case import Candidate, Case, Loaded, stored_bytes
from benchmarks.peers import openvino, sdnq, torchao
from mixdq.quant.bos import BosRow
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.linear import QuantizedLinear
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import QParams, QuantSpec


def floating(dtype: torch.dtype, *, compiled: bool = False) -> Candidate:
    """Return the float model, as it comes or compiled whole."""

    def load(case: Case) -> Loaded:
        model = case.unet(dtype)
        call = torch.compile(model) if compiled else model
        arguments = case.inputs(dtype)
        return Loaded(lambda: call(**arguments), stored_bytes(model))

    return Candidate(load=load, held=dtype.itemsize, loading=dtype.itemsize)


def ours(*bits: str, compiled: str = "") -> Candidate:
    """Return the bfloat16 model with every layer quantized, on our own kernels.

    Layers take `bits` in turn. `compiled` is "whole" or "blocks", which is every transformer block by itself.
    """
    widths = [LayerBits.parse(text) for text in bits]

    def load(case: Case) -> Loaded:
        model = case.unet(torch.bfloat16)
        quantize(model, widths)
        size = stored_bytes(model)
        call: Callable[..., object] = model
        if compiled == "whole":
            call = torch.compile(model)
        elif compiled == "blocks":
            model.compile_repeated_blocks()
        arguments = case.inputs(torch.bfloat16)
        return Loaded(lambda: call(**arguments), size)

    held = sum(width.weight for width in widths) / len(widths) / 8
    return Candidate(load=load, held=held, loading=2 + held / 2)


def quantize(model: nn.Module, bits: list[LayerBits]) -> None:
    """Replace every Linear and Conv2d, one after the other; ranges are made up, for time does not depend on them."""
    spec = QuantSpec(num_bits=8, symmetric=False)
    activation = QParams(scale=torch.tensor(0.05), zero_point=torch.tensor(0, dtype=torch.int32), spec=spec)
    layers = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)}
    for (name, module), width in zip(layers.items(), cycle(bits), strict=False):
        bos = None
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            bos = BosRow(input=torch.ones(module.weight.shape[1]), output=torch.zeros(module.weight.shape[0]))
        layout = LayerLayout(name=name, bits=width, bos=bos is not None)
        parts = quantize_weight(module.weight, width.weight)
        inputs = None if width.activation == FLOAT_BITS else [activation]
        if isinstance(module, nn.Linear):
            model.set_submodule(name, QuantizedLinear.from_float(module, layout, parts, inputs, bos, backend="cpu"))
        else:
            model.set_submodule(name, QuantizedConv2d.from_float(module, layout, parts, inputs, backend="cpu"))
        # The float weight goes at once, not when all are done.
        module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)


CANDIDATES: dict[str, Candidate] = {
    "float32": floating(torch.float32),
    "bfloat16": floating(torch.bfloat16),
    "bfloat16 compiled": floating(torch.bfloat16, compiled=True),
    "W8A8": ours("W8A8"),
    "W4A8": ours("W4A8"),
    "W2A8": ours("W2A8"),
    "mixed A8": ours("W2A8", "W4A8", "W8A8"),
    "W8A16": ours("W8A16"),
    "W4A16": ours("W4A16"),
    "W8A8 compiled": ours("W8A8", compiled="whole"),
    "W8A8 blocks compiled": ours("W8A8", compiled="blocks"),
    "W4A8 blocks compiled": ours("W4A8", compiled="blocks"),
    "OpenVINO int8+float32": openvino.int8("f32"),
    "OpenVINO int8+bfloat16": openvino.int8("bf16"),
    "OpenVINO float32": openvino.floating("f32"),
    "OpenVINO bfloat16": openvino.floating("bf16"),
    "SDNQ int8": sdnq.int8(convolutions=False),
    "SDNQ int8, convolutions too": sdnq.int8(convolutions=True),
    "torchao int8 compiled": torchao.int8_dynamic(),
}
