"""Every distinct layer of SDXL's UNet on a GPU: our kernels beside cuBLAS and cuDNN in float16, int8 and FP8.

Microseconds of one call in a graph, whose tensors come from memory, not from the cache. Ours and float16 include all
they do, `W8A8 float` too; `product` is ours on codes that are there already, `cuBLAS int8` and `FP8` are bare products.
Beside each stands its share of what is possible: the longer of operations at the measured rate of such products (int8,
float16 or float8) and bytes of weights, input and output, each once, at the measured rate of memory, over the time it
took; "m" where memory's is the longer. Layers that take most of a UNet's time come first, and what is known is written
after each. With `--tune` the tiles of ours are measured before, and kept as `mixdq benchmark --tune` keeps them; a UNet
runs layers joined, in other sizes, which `benchmarks.unet --tune` measures.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from benchmarks import measuring, sdxl
from benchmarks.cuda.timing import (
    FP8_CAPABILITY,
    Call,
    ceilings,
    failures,
    fp8_product,
    graphed,
    in_turns,
    need_cuda,
    said,
    sets_of,
)
from benchmarks.measuring import Timing
from benchmarks.sdxl import Shape
from mixdq.quant.grid import input_spec
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.backends.fp8 import Fp8Backend
from mixdq.runtime.kernel import KernelRequest
from mixdq.runtime.kernels.gpu.tuning import tuning
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import QParams

OURS = ("W8A8", "W4A8", "W2A8", "W8A16", "W4A16")
FLOAT, DYNAMIC, PRODUCT, CUBLAS, FP8 = "float16", "W8A8 dynamic", "product", "cuBLAS int8", "FP8"
E4M3 = "W8A8 float"
SMOKE = (Shape("linear", (640, 1280), (1, 77, 1280)), Shape("conv2d", (320, 320, 3, 3), (1, 320, 16, 16), 1, 1))


class Column(NamedTuple):
    """What a column multiplies, and how much memory: bits of a weight, bytes of an input's and an output's element."""

    products: str
    weight_bits: int
    input_bytes: int = 2
    output_bytes: int = 2


COLUMNS = {
    FLOAT: Column("float16", 16),
    "W8A8": Column("int8", 8),
    "W4A8": Column("int8", 4),
    "W2A8": Column("int8", 2),
    "W8A16": Column("float16", 8),
    "W4A16": Column("float16", 4),
    DYNAMIC: Column("int8", 8),
    PRODUCT: Column("int8", 8, input_bytes=1),
    CUBLAS: Column("int8", 8, input_bytes=1, output_bytes=4),
    E4M3: Column("float8", 8),
    FP8: Column("float8", 8, input_bytes=1),
}


class Floor(NamedTuple):
    """The least seconds that a column can take, and the roof that says so: its products' dtype, or "bytes"."""

    seconds: float
    roof: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A layer, how often the UNet calls it, the seconds by column, and why a column is missing."""

    shape: Shape
    calls: int
    seconds: dict[str, Timing]
    missing: dict[str, str]


def bytes_of(shape: Shape, name: str) -> int:
    """Return the bytes of a layer's weight, input and output in a column."""
    column = COLUMNS[name]
    weight, read = torch.Size(shape.weight).numel(), torch.Size(shape.input).numel()
    return weight * column.weight_bits // 8 + read * column.input_bytes + shape.outputs * column.output_bytes


def floor(shape: Shape, name: str, most: Mapping[str, float]) -> Floor:
    """Return the higher of a layer's two floors in a column, by the device's ceilings; one that is unknown counts 0."""
    amounts = {COLUMNS[name].products: shape.operations, "bytes": bytes_of(shape, name)}
    return max(Floor(amount / most[roof] if roof in most else 0.0, roof) for roof, amount in amounts.items())


def main(arguments: argparse.Namespace) -> None:
    """Measure, print and write."""
    need_cuda()
    counted = dict.fromkeys(SMOKE, 1) if arguments.smoke else sdxl.shapes(arguments.batch, arguments.side)
    names = arguments.only or list(COLUMNS)
    torch.backends.cudnn.benchmark = True
    rows: list[Row] = []
    with torch.inference_mode():
        most = ceilings()
        for shape, calls in track(sorted(counted.items(), key=lambda one: -one[0].operations * one[1]), "measuring"):
            with tuning() if arguments.tune else nullcontext():
                rows.append(measured(shape, calls, names, arguments.runs))
            write(arguments, rows, most)
    console = measuring.console()
    console.print(table(rows, names, most))
    rates = ", ".join(f"{roof} {rate / 1e12:.0f} T/s" for roof, rate in most.items() if roof != "bytes")
    console.print(f"Ceilings, measured now: {rates}, memory {most['bytes'] / 1e9:.0f} GB/s, read and written")
    spreads = [(one.slowest / one.fastest, f"{row.shape}: {name}") for row in rows for name, one in row.seconds.items()]
    if spreads:
        console.print("Slowest run over the fastest, at most {:.2f}: {}".format(*max(spreads)), markup=False)
    for reason in sorted({f"{name}: {why}" for row in rows for name, why in row.missing.items()}):
        console.print(f"left out: {reason}", markup=False)


def write(arguments: argparse.Namespace, rows: Sequence[Row], most: Mapping[str, float]) -> None:
    """Write what is known, where it was asked for."""
    if not arguments.json:
        return
    written = []
    for row in rows:
        floors = {name: floor(row.shape, name, most) for name in row.seconds}
        entry: dict[str, object] = {"layer": str(row.shape), "calls": row.calls, "gop": row.shape.operations / 1e9}
        entry["us"] = {name: one.median * 1e6 for name, one in row.seconds.items()}
        entry["us_fastest"] = {name: one.fastest * 1e6 for name, one in row.seconds.items()}
        entry["us_slowest"] = {name: one.slowest * 1e6 for name, one in row.seconds.items()}
        entry["share"] = {name: floors[name].seconds / one.median for name, one in row.seconds.items()}
        entry["roof"] = {name: one.roof for name, one in floors.items()}
        written.append({**entry, "left_out": row.missing})
    measuring.write_json(arguments.json, written, batch=arguments.batch, side=arguments.side, ceilings=most)


def measured(shape: Shape, calls: int, names: Sequence[str], runs: int) -> Row:
    """Return the row of a layer."""
    things: dict[str, tuple[Call, int]] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            made = [candidate(shape, name, seed) for seed in range(sets_of(bytes_of(shape, name)))]
            things[name] = (graphed(made), len(made))
        except failures() as error:
            missing[name] = f"{shape}: {said(error)}"
    try:
        seconds = in_turns(things, runs=runs)
    except failures() as error:
        seconds = {}
        missing |= dict.fromkeys(things, f"{shape}: in turns: {said(error)}")
    return Row(shape=shape, calls=calls, seconds=seconds, missing=missing)


def candidate(shape: Shape, name: str, seed: int) -> Call:
    """Return a column's call, on random numbers of its own.

    Raises:
        NotImplementedError: this column has no such layer.
    """
    generator = torch.Generator("cuda").manual_seed(seed)
    order = torch.channels_last if shape.op == "conv2d" else torch.contiguous_format
    weight, x = (
        torch.randn(size, generator=generator, device="cuda", dtype=torch.float16).to(memory_format=order)
        for size in (shape.weight, shape.input)
    )
    makers: dict[str, Callable[[Shape, Tensor, Tensor], Call]] = {
        FLOAT: _floating,
        CUBLAS: _cublas,
        FP8: _fp8,
        PRODUCT: _product,
        DYNAMIC: partial(_ours, bits=LayerBits.parse("W8A8"), dynamic=True),
        **{each: partial(_ours, bits=LayerBits.parse(each)) for each in (*OURS, E4M3)},
    }
    return makers[name](shape, weight, x)


def _floating(shape: Shape, weight: Tensor, x: Tensor) -> Call:
    if shape.op == "linear":
        return lambda: functional.linear(x, weight)
    return lambda: functional.conv2d(x, weight, None, shape.stride, shape.padding)


def _bound(shape: Shape, weight: Tensor, bits: LayerBits, dynamic: bool):  # type: ignore[no-untyped-def]
    request = KernelRequest(
        layer=str(shape),
        op="linear" if shape.op == "linear" else "conv2d",
        bits=bits,
        weight_shape=shape.weight,
        stride=(shape.stride, shape.stride),
        padding=(shape.padding, shape.padding),
        dynamic=dynamic,
        device="cuda",
        dtype=torch.float16,
        output_dtype=torch.float16,
    )
    backend = Fp8Backend() if bits.is_float else CudaBackend()
    refusals = backend.refusals(request)
    if refusals:
        raise NotImplementedError("; ".join(refusals))
    (part,) = quantize_weight(weight, bits.weight, number=bits.number)
    activation = QParams(
        scale=torch.tensor(0.03, device="cuda"),
        zero_point=None if bits.is_float else torch.tensor(5, dtype=torch.int32, device="cuda"),
        spec=input_spec(8, bits.number),
    )
    return backend.bind(request, part, None, None if dynamic or bits.activation == FLOAT_BITS else activation)


def _ours(shape: Shape, weight: Tensor, x: Tensor, *, bits: LayerBits, dynamic: bool = False) -> Call:
    kernel = _bound(shape, weight, bits, dynamic)
    return lambda: kernel(x)


def _product(shape: Shape, weight: Tensor, x: Tensor) -> Call:
    layer = _bound(shape, weight, LayerBits.parse("W8A8"), dynamic=False).layer
    made, y = layer.prepared(x)
    return lambda: layer.multiply(made, y, None)


def _cublas(shape: Shape, weight: Tensor, x: Tensor) -> Call:
    if shape.op != "linear" or shape.rows <= 16:
        raise NotImplementedError("torch._int_mm takes matrices of more than 16 rows")
    rows, columns = (tensor.to(torch.int8).flatten(0, -2) for tensor in (x * 40, weight * 40))
    return lambda: torch._int_mm(rows, columns.t())


def _fp8(shape: Shape, weight: Tensor, x: Tensor) -> Call:
    if shape.op != "linear":
        raise NotImplementedError("torch._scaled_mm takes matrices")
    if torch.cuda.get_device_capability() < FP8_CAPABILITY:
        raise NotImplementedError("no FP8 before compute capability 8.9")
    rows, columns = (tensor.to(torch.float8_e4m3fn).flatten(0, -2) for tensor in (x, weight))
    return fp8_product(rows, columns)


def table(rows: Sequence[Row], names: Sequence[str], most: Mapping[str, float]) -> Table:
    """Return the rows, and a last one for all calls of a whole UNet together; microseconds and shares of the floor."""
    made = Table(title="microseconds; share of what the measured ceiling of such products, or (m) of memory, allows")
    for name in ("layer", "calls", *names):
        made.add_column(name, justify="left" if name == "layer" else "right")
    for row in rows:
        made.add_row(str(row.shape), str(row.calls), *(cell(row, name, most) for name in names))
    made.add_section()
    floors = {name: sum(row.calls * floor(row.shape, name, most).seconds for row in rows) for name in names}
    sums = {
        name: sum(row.calls * row.seconds[name].median for row in rows)
        for name in names
        if all(name in row.seconds for row in rows)
    }
    totals = (f"{sums[name] * 1e3:.2f} ms {floors[name] / sums[name]:.0%}" if name in sums else "-" for name in names)
    made.add_row("all calls", "", *totals)
    return made


def cell(row: Row, name: str, most: Mapping[str, float]) -> str:
    """Return the microseconds of a layer in a column, and its share: "12.3 71%"."""
    if name not in row.seconds:
        return "-"
    seconds, (least, roof) = row.seconds[name].median, floor(row.shape, name, most)
    return f"{seconds * 1e6:.1f}" + (f" {least / seconds:.0%}{'m' if roof == 'bytes' else ''}" if least else "")
