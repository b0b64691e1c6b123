"""What `benchmarks.unet` compares: name -> how it is loaded. Floating point and ours here, others in `peers`."""

from collections.abc import Callable
from itertools import cycle

import torch
from diffusers import UNet2DConditionModel

from benchmarks.case import Candidate, Case, Loaded, stored_bytes
from benchmarks.conversion import record_of, table_of
from benchmarks.peers import openvino, sdnq, torchao
from mixdq.conversion.convert import convert
from mixdq.types.plan import BitPlan, LayerBits


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


def quantize(model: UNet2DConditionModel, bits: list[LayerBits]) -> None:
    """Convert the model as `mixdq apply` does; ranges are made up, for time does not depend on them."""
    layers = table_of(model)
    plan = BitPlan(name="benchmark", layers={spec.name: one for spec, one in zip(layers, cycle(bits), strict=False)})
    convert(model, plan, layers, record_of(layers), backend="cpu")


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
