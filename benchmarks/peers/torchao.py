"""torchao int8: Linear weights in int8, activations quantized row by row as they come, compiled whole as it advises."""

from collections.abc import Callable

import torch

from benchmarks.case import Candidate, Case, Loaded, stored_bytes
from benchmarks.peers import versions


def int8_dynamic() -> Candidate:
    """Return the bfloat16 model with its Linear layers quantized; torchao leaves convolutions in bfloat16."""

    def load(case: Case) -> Loaded:
        versions("torchao")
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        model = case.unet(torch.bfloat16)
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
        call: Callable[..., object] = torch.compile(model)
        arguments = case.inputs(torch.bfloat16)
        return Loaded(lambda: call(**arguments), stored_bytes(model))

    return Candidate(load=load, held=2, loading=3)
