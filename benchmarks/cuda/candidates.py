"""The ways to run SDXL's UNet on a GPU that `benchmarks.unet --device cuda` compares."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from benchmarks import sdxl
from benchmarks.case import SIZES, MissingError, random_unet
from benchmarks.conversion import record_of, table_of
from benchmarks.cuda.timing import Call
from benchmarks.peers import versions
from mixdq.conversion.convert import convert
from mixdq.runtime.blocks import unfold_blocks
from mixdq.types.plan import BitPlan, LayerBits

Times = Mapping[str, Mapping[str, float]]
"""Layer -> column of `benchmarks.kernels` -> microseconds."""
How = Literal["eager", "graph", "compiled", "compiled graph"]
MODES = {"compiled": "max-autotune", "compiled graph": "max-autotune-no-cudagraphs"}
"""torch captures what it compiles by itself, but not operators such as ours: there the whole call is captured by us."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is called: the model's size, batch, and side of the latent; times of its layers, where they are known.

    `tune`: the tiles of our products are measured, each in the sizes that the model runs.
    """

    size: str
    batch: int
    side: int
    times: Times | None = None
    tune: bool = False

    def unet(self) -> nn.Module:
        """Return the UNet in float16 on the GPU, with small random weights."""
        model: nn.Module = random_unet(*SIZES[self.size], torch.float16, "cuda")
        return model

    def called(self, model: nn.Module, how: How) -> Call:
        """Return a call of a model with inputs of its own, compiled or not."""
        arguments = sdxl.inputs(self.batch, self.side, torch.float16, "cuda")
        called: Callable[..., object] = torch.compile(model, mode=MODES[how]) if how in MODES else model
        return lambda: called(**arguments)


@dataclass(frozen=True)
class Candidate:
    """A way to run it: what makes the model, and how it is called."""

    load: Callable[[Setting], nn.Module]
    how: How = "graph"


def floating(setting: Setting) -> nn.Module:
    """Return the float16 model, whose pictures are channels first, as diffusers loads it."""
    return setting.unet()


def floating_channels_last(setting: Setting) -> nn.Module:
    """Return the float16 model; convolutions with such weights leave their pictures channels last, as ours do."""
    model: nn.Module = setting.unet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def ours(*bits: str, folded: bool = True) -> Callable[[Setting], nn.Module]:
    """Return what makes the model with every layer quantized, layers taking `bits` in turn.

    "fastest" asks the layers' times. Of "W8A8 float" convolutions, and layers that read a text, have W8A8. `folded`:
    norms, gates and residuals go into the layers' kernels.
    """

    def load(setting: Setting) -> nn.Module:
        chosen = _fastest(setting) if bits == ("fastest",) else {}
        model = setting.unet()
        table = table_of(model)
        plan = chosen or {spec.name: LayerBits.parse(one) for spec, one in zip(table, cycle(bits), strict=False)}
        # First text tokens of layers of floats wait for the device, which no graph may.
        integers = [spec.name for spec in table if spec.op == "conv2d" or spec.bos]
        whole = {name: replace(plan[name], number="int") for name in integers}
        convert(model, BitPlan(name="benchmark", layers={**plan, **whole}), table, record_of(table))
        if not folded:
            unfold_blocks(model)
        return model

    return load


def torchao(setting: Setting) -> nn.Module:
    """Return the model with torchao's dynamic int8 Linear layers."""
    versions("torchao")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = setting.unet()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def sdnq(setting: Setting) -> nn.Module:
    """Return the model with SDNQ's int8 products, convolutions too."""
    versions("sdnq")
    from sdnq import sdnq_post_load_quant

    model: nn.Module = sdnq_post_load_quant(
        setting.unet(),
        weights_dtype="int8",
        use_quantized_matmul=True,
        quant_conv=True,
        use_quantized_matmul_conv=True,
    )
    return model


CANDIDATES: dict[str, Candidate] = {
    "float16 eager": Candidate(floating, "eager"),
    "float16 graph": Candidate(floating),
    "float16 channels last graph": Candidate(floating_channels_last),
    "float16 compiled": Candidate(floating, "compiled"),
    "W8A8 graph": Candidate(ours("W8A8")),
    "W8A8 graph, not folded": Candidate(ours("W8A8", folded=False)),
    "W4A8 graph": Candidate(ours("W4A8")),
    "mixed graph": Candidate(ours("fastest")),
    "W4A16 graph": Candidate(ours("W4A16")),
    "W8A8 float graph": Candidate(ours("W8A8 float")),
    "W8A8 eager": Candidate(ours("W8A8"), "eager"),
    "W8A8 compiled": Candidate(ours("W8A8"), "compiled graph"),
    "W4A8 compiled": Candidate(ours("W4A8"), "compiled graph"),
    "mixed compiled": Candidate(ours("fastest"), "compiled graph"),
    "W8A8 float compiled": Candidate(ours("W8A8 float"), "compiled graph"),
    "torchao int8 compiled": Candidate(torchao, "compiled"),
    "SDNQ int8": Candidate(sdnq, "eager"),
}

BASELINES = ("float16 graph", "float16 channels last graph")
"""The faster of them is what all are compared with."""


def layer_times(path: Path, batch: int, side: int) -> Times:
    """Return what `benchmarks.kernels --json` wrote; end the program where that is of another batch or size."""
    read = json.loads(path.read_text(encoding="utf-8"))
    measured = read.get("batch"), read.get("side")
    if measured != (batch, side):
        raise SystemExit(
            f"{path}: its times are of batch {measured[0]} and side {measured[1]}, here they are {batch} and {side}. "
            f"Measure: python -m benchmarks.kernels --device cuda --batch {batch} --side {side} --json FILE"
        )
    return {row["layer"]: row["us"] for row in read["rows"]}


def _fastest(setting: Setting) -> dict[str, LayerBits]:
    if setting.times is None:
        raise MissingError(
            "it needs --layers FILE, which `python -m benchmarks.kernels --device cuda --json FILE` makes"
        )
    layers, channels = SIZES[setting.size]
    with torch.device("meta"):
        model = sdxl.unet(layers, channels=channels)
        shapes = sdxl.named_shapes_of(model, sdxl.inputs(setting.batch, setting.side, torch.float32, "meta"))
    if not any(str(shape) in setting.times for shape in shapes.values()):
        raise MissingError(f"--layers has times of no layer of the UNet of size {setting.size}")
    return {name: _fastest_bits(setting.times.get(str(shape), {})) for name, shape in shapes.items()}


def _fastest_bits(times: Mapping[str, float]) -> LayerBits:
    """Return bits by time, the fewest of equals; what was not measured is left in 16 bits."""
    choices = [("W4A8", "W4A8"), ("W8A8", "W8A8"), ("float16", "W16A16")]
    known = [(times[column], i, bits) for i, (column, bits) in enumerate(choices) if column in times]
    return LayerBits.parse(min(known)[2]) if known else LayerBits.parse("W16A16")
