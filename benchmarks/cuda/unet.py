"""SDXL's UNet as a whole on a GPU: milliseconds of a call and memory, ours beside float16 and other quantizers.

All candidates are loaded one after the other, which shows what memory each takes, and then called in turns. Of the
plan "mixed" every layer has the bits, of W8A8, W4A8 and 16, whose time was least in a run of `benchmarks.kernels
--device cuda --json FILE`, given as `--layers FILE`.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from rich.table import Table
from torch import nn

from benchmarks import measuring, sdxl
from benchmarks.case import SIZES, MissingError, stored_bytes
from benchmarks.conversion import record_of, table_of
from benchmarks.cuda.timing import Call, graphed, in_turns, need_cuda
from benchmarks.peers import versions
from benchmarks.sdxl import Shape
from mixdq.conversion.convert import convert
from mixdq.errors import NoBackendError
from mixdq.runtime.blocks import unfold_blocks
from mixdq.types.plan import BitPlan, LayerBits

MIB = 2**20
Load = Callable[["Setting"], tuple[nn.Module, Call]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is called: the model's size, batch, and side of the latent; microseconds of layers, where they are known."""

    size: str
    batch: int
    side: int
    layers: Path | None

    def unet(self) -> UNet2DConditionModel:
        """Return the UNet in float16 on the GPU, with small random weights."""
        layers, channels = SIZES[self.size]
        with torch.device("meta"):
            model = sdxl.unet(layers, channels=channels)
        for module in model.children():
            module.to(torch.float16)
        model.to_empty(device="cuda")
        for parameter in model.parameters():
            parameter.data.uniform_(-0.03, 0.03)
        model.eval().requires_grad_(False)
        return model

    def called(self, model: Callable[..., object]) -> Call:
        """Return a call of a model with inputs of its own."""
        arguments = sdxl.inputs(self.batch, self.side, torch.float16, "cuda")
        return lambda: model(**arguments)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A candidate: milliseconds of a call, and bytes: of its weights as stored, held ready, at most in a call."""

    name: str
    ms: float
    fastest: float
    slowest: float
    first_call: float
    weight_bytes: int
    held_bytes: int
    peak_bytes: int


def floating(how: str) -> Load:
    """Return the float16 model: "eager", "graph" or "compiled"."""

    def load(setting: Setting) -> tuple[nn.Module, Call]:
        model = setting.unet()
        return model, _called(setting, model, how)

    return load


def ours(*bits: str, how: str = "graph", folded: bool = True) -> Load:
    """Return the model with every layer quantized, layers taking `bits` in turn; "fastest" asks the layers' times.

    Of "W8A8 float" convolutions, and layers that read a text, have W8A8. `folded`: norms, gates and residuals go into
    the layers' kernels.
    """

    def load(setting: Setting) -> tuple[nn.Module, Call]:
        plan: dict[str, LayerBits]
        model = setting.unet()
        table = table_of(model)
        if bits == ("fastest",):
            plan = _fastest(setting)
        else:
            plan = {spec.name: LayerBits.parse(one) for spec, one in zip(table, cycle(bits), strict=False)}
        # First text tokens of layers of floats wait for the device, which no graph may.
        integers = [spec.name for spec in table if spec.op == "conv2d" or spec.bos]
        whole = {name: replace(plan[name], number="int") for name in integers}
        convert(model, BitPlan(name="benchmark", layers={**plan, **whole}), table, record_of(table))
        if not folded:
            unfold_blocks(model)
        return model, _called(setting, model, how)

    return load


def torchao(setting: Setting) -> tuple[nn.Module, Call]:
    """Return the model with torchao's dynamic int8 Linear layers, compiled as it advises."""
    versions("torchao")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = setting.unet()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model, _called(setting, model, "compiled")


def sdnq(setting: Setting) -> tuple[nn.Module, Call]:
    """Return the model with SDNQ's int8 products, convolutions too."""
    versions("sdnq")
    from sdnq import sdnq_post_load_quant

    model = sdnq_post_load_quant(
        setting.unet(),
        weights_dtype="int8",
        use_quantized_matmul=True,
        quant_conv=True,
        use_quantized_matmul_conv=True,
    )
    return model, _called(setting, model, "eager")


CANDIDATES: dict[str, Load] = {
    "float16 eager": floating("eager"),
    "float16 graph": floating("graph"),
    "float16 compiled": floating("compiled"),
    "W8A8 graph": ours("W8A8"),
    "W8A8 graph, not folded": ours("W8A8", folded=False),
    "W4A8 graph": ours("W4A8"),
    "mixed graph": ours("fastest"),
    "W4A16 graph": ours("W4A16"),
    "W8A8 float graph": ours("W8A8 float"),
    "W8A8 eager": ours("W8A8", how="eager"),
    "W8A8 compiled": ours("W8A8", how="compiled"),
    "W4A8 compiled": ours("W4A8", how="compiled"),
    "torchao int8 compiled": torchao,
    "SDNQ int8": sdnq,
}


def main(arguments: argparse.Namespace) -> None:
    """Load, measure, print and write."""
    need_cuda()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    setting = Setting(size=arguments.size, batch=arguments.batch, side=arguments.side, layers=arguments.layers)
    console = measuring.console()
    with torch.inference_mode():
        rows, reasons = compare(arguments.only or list(CANDIDATES), setting, arguments.runs)
    console.print(table(rows, f"SDXL's UNet ({setting.size}), batch {setting.batch}, {8 * setting.side} px"))
    for name, reason in reasons.items():
        console.print(f"{name}: not run: {reason}", markup=False)
    if arguments.json:
        facts = {"size": setting.size, "batch": setting.batch, "side": setting.side, "runs": arguments.runs}
        measuring.write_json(arguments.json, [asdict(row) for row in rows], **facts, not_run=reasons)


def compare(names: Sequence[str], setting: Setting, runs: int) -> tuple[list[Row], dict[str, str]]:
    """Return one row for each candidate, and name -> reason of those that cannot run here."""
    ready: dict[str, tuple[nn.Module, Call]] = {}
    facts: dict[str, tuple[float, int, int, int]] = {}
    reasons: dict[str, str] = {}
    for name in names:
        before = _settled()
        torch.cuda.reset_peak_memory_stats()
        try:
            model, call = CANDIDATES[name](setting)
            started = time.perf_counter()
            call()
            torch.cuda.synchronize()
        except (MissingError, NoBackendError, RuntimeError, torch.cuda.OutOfMemoryError) as error:
            reasons[name] = " ".join(str(error).split())[:300]
            continue
        first = time.perf_counter() - started
        held = _settled() - before
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        facts[name] = first, stored_bytes(model), held, torch.cuda.max_memory_allocated() - before
        ready[name] = model, call
    timings = in_turns({name: (call, 1) for name, (_, call) in ready.items()}, runs=runs)
    return [_row(name, timings[name], *facts[name]) for name in ready], reasons


def table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows, against float16 in a graph where it was measured."""
    made = Table(title=title)
    for name in ("", "ms", "fastest to slowest", "times as fast", "first call, s", "weights", "held", "peak, MiB"):
        made.add_column(name, justify="right" if name else "left")
    against = next((row.ms for row in rows if row.name == "float16 graph"), None)
    for row in rows:
        made.add_row(
            row.name,
            f"{row.ms:.2f}",
            f"{row.fastest:.2f} to {row.slowest:.2f}",
            "" if against is None else f"{against / row.ms:.2f}",
            f"{row.first_call:.1f}",
            *(f"{size / MIB:.0f}" for size in (row.weight_bytes, row.held_bytes, row.peak_bytes)),
        )
    return made


def _called(setting: Setting, model: nn.Module, how: str) -> Call:
    if how == "compiled":
        return setting.called(torch.compile(model, mode="max-autotune"))
    call = setting.called(model)
    return graphed([call]) if how == "graph" else call


def _fastest(setting: Setting) -> dict[str, LayerBits]:
    if setting.layers is None:
        raise MissingError(
            "it needs --layers FILE, which `python -m benchmarks.kernels --device cuda --json FILE` makes"
        )
    rows = json.loads(setting.layers.read_text(encoding="utf-8"))["rows"]
    times = {row["layer"]: row["us"] for row in rows}
    layers, channels = SIZES[setting.size]
    with torch.device("meta"):
        model = sdxl.unet(layers, channels=channels)
        shapes = sdxl.named_shapes_of(model, sdxl.inputs(setting.batch, setting.side, torch.float32, "meta"))
    return {name: _fastest_bits(times.get(str(shape), {}), shape) for name, shape in shapes.items()}


def _fastest_bits(times: dict[str, float], shape: Shape) -> LayerBits:
    """Return bits by time, the fewest of equals; what was not measured is left in 16 bits."""
    choices = [("W4A8", "W4A8"), ("W8A8", "W8A8"), ("float16", "W16A16")]
    known = [(times[column], i, bits) for i, (column, bits) in enumerate(choices) if column in times]
    return LayerBits.parse(min(known)[2]) if known else LayerBits.parse("W16A16")


def _settled() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def _row(name: str, timing: measuring.Timing, first: float, weights: int, held: int, peak: int) -> Row:
    return Row(
        name=name,
        ms=timing.median * 1e3,
        fastest=timing.fastest * 1e3,
        slowest=timing.slowest * 1e3,
        first_call=first,
        weight_bytes=weights,
        held_bytes=held,
        peak_bytes=peak,
    )
