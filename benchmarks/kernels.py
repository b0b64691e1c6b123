"""Every distinct layer of SDXL's UNet, alone: our kernels beside floating point and oneDNN's int8 product."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from benchmarks import measuring, sdxl
from benchmarks.cuda import kernels as cuda
from benchmarks.roofline import GOOD, Roofline, stream_bandwidth
from benchmarks.sdxl import Shape
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cpu import CpuBackend
from mixdq.runtime.kernel import KernelRequest
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import QParams, QuantSpec

ACTIVATION = QParams(
    scale=torch.tensor(0.03), zero_point=torch.tensor(5, dtype=torch.int32), spec=QuantSpec(num_bits=8, symmetric=False)
)
OURS = ("W8A8", "W4A8", "W2A8", "W8A16", "W4A16")
INTEGER = ("W8A8", "W4A8", "W2A8", "oneDNN int8")
COLUMNS = (*OURS, "bfloat16", "float32", "oneDNN int8")
"""The last one is its product alone, of an input that is quantized already."""
OVERHEAD = Shape("linear", (64, 64), (1, 1, 64))
"""A layer with next to nothing to compute."""
KINDS = {"int8": INTEGER, "bfloat16": ("bfloat16",), "float32": ("float32",)}
"""Kind of product -> the columns whose best rate is its ceiling; weight-only kernels compute in bfloat16 or float32."""
SMOKE = (Shape("linear", (64, 96), (1, 33, 96)), Shape("conv2d", (48, 32, 3, 3), (1, 32, 9, 9), 1, 1))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A layer, how often the UNet calls it, and the median seconds of one call by column."""

    shape: Shape
    calls: int
    seconds: dict[str, float]

    def rate(self, name: str) -> float:
        """Operations a second."""
        return self.shape.operations / self.seconds[name]

    def share(self, roofline: Roofline) -> float | None:
        """W8A8's rate as a share of the ceiling; None where it was not measured."""
        return self.rate("W8A8") / roofline.ceiling if "W8A8" in self.seconds else None

    def reason(self, roofline: Roofline) -> str:
        """What `Roofline.reason` says of W8A8; nothing where it was not measured."""
        return roofline.reason(self.shape, self.seconds["W8A8"]) if "W8A8" in self.seconds else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--smoke", action="store_true", help="a few small layers: does it run")
    parser.add_argument("--only", nargs="+", metavar="COLUMN")
    parser.add_argument("--batch", type=measuring.count, default=1)
    parser.add_argument("--side", type=measuring.count, default=64, help="of the latent; 64 is 512 px")
    parser.add_argument("--runs", type=measuring.count, default=5)
    parser.add_argument("--tune", action="store_true", help="cuda: measure the tiles of ours first, and keep them")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    known = cuda.COLUMNS if arguments.device == "cuda" else COLUMNS
    if unknown := [name for name in arguments.only or () if name not in known]:
        parser.error(f"no column of {arguments.device} is called {', '.join(unknown)}: there are {', '.join(known)}")
    if arguments.device == "cuda":
        cuda.main(arguments)
        return
    arguments.only = arguments.only or list(COLUMNS)
    counted = dict.fromkeys(SMOKE, 1) if arguments.smoke else sdxl.shapes(arguments.batch, arguments.side)
    rows = []
    with torch.inference_mode():
        overhead = measuring.in_turns(candidates(OVERHEAD, OURS[:1]), runs=21, least_seconds=0.001)
        for shape, count in track(sorted(counted.items(), key=lambda one: -one[0].operations * one[1]), "measuring"):
            timings = measuring.in_turns(
                candidates(shape, arguments.only), runs=arguments.runs, least_seconds=0.0 if arguments.smoke else 0.02
            )
            rows.append(Row(shape=shape, calls=count, seconds={name: one.median for name, one in timings.items()}))
        ceilings = {kind: best_rate(rows, names) for kind, names in KINDS.items()}
        roofline = Roofline(ceiling=ceilings["int8"], bandwidth=stream_bandwidth(), overhead=overhead[OURS[0]].median)
    console = measuring.console()
    console.print(table(rows, arguments.only, roofline))
    rates = ", ".join(f"{kind} {rate / 1e9:.0f} GOP/s" for kind, rate in ceilings.items() if rate)
    console.print(
        f"Best rates seen: {rates}; memory {roofline.bandwidth / 1e9:.1f} GB/s; "
        f"a call with nothing to do {roofline.overhead * 1e6:.0f} us; {torch.get_num_threads()} threads"
    )
    if arguments.json:
        measuring.write_json(
            arguments.json,
            [entry(row, roofline) for row in rows],
            batch=arguments.batch,
            side=arguments.side,
            operations_per_second={kind: rate for kind, rate in ceilings.items() if rate},
            bytes_per_second=roofline.bandwidth,
            overhead_seconds=roofline.overhead,
        )


def best_rate(rows: Sequence[Row], names: Sequence[str]) -> float:
    """Return the most operations a second of any row in these columns; 0 where none was measured."""
    return max((row.rate(name) for row in rows for name in names if name in row.seconds), default=0.0)


def entry(row: Row, roofline: Roofline) -> dict[str, object]:
    """Return a row as JSON."""
    return {
        "layer": str(row.shape),
        "calls": row.calls,
        "gop": row.shape.operations / 1e9,
        "gop_per_second": {name: row.rate(name) / 1e9 for name in row.seconds},
        "share": row.share(roofline),
        "reason": row.reason(roofline),
    }


def candidates(shape: Shape, names: Sequence[str]) -> dict[str, Callable[[], Tensor]]:
    """Return column -> what is timed, on random numbers, for the columns of these names."""
    torch.manual_seed(0)
    weight, x = torch.randn(shape.weight), torch.randn(shape.input)
    order = torch.channels_last if shape.op == "conv2d" else torch.contiguous_format

    def ours(bits: LayerBits) -> Callable[[], Tensor]:
        request = KernelRequest(
            layer=str(shape),
            op="linear" if shape.op == "linear" else "conv2d",
            bits=bits,
            weight_shape=shape.weight,
            stride=(shape.stride, shape.stride),
            padding=(shape.padding, shape.padding),
            device="cpu",
            dtype=torch.bfloat16,
            output_dtype=torch.bfloat16,
        )
        (part,) = quantize_weight(weight, bits.weight)
        kernel = CpuBackend().bind(request, part, None, None if bits.activation == FLOAT_BITS else ACTIVATION)
        mine = x.to(torch.bfloat16).contiguous(memory_format=order)
        return lambda: kernel(mine)

    def floating(dtype: torch.dtype) -> Callable[[], Tensor]:
        w, mine = (tensor.to(dtype).contiguous(memory_format=order) for tensor in (weight, x))
        if shape.op == "linear":
            return lambda: functional.linear(mine, w)
        return lambda: functional.conv2d(mine, w, None, shape.stride, shape.padding)

    makers: dict[str, Callable[[], Callable[[], Tensor]]] = {
        **{name: partial(ours, LayerBits.parse(name)) for name in OURS},
        "bfloat16": partial(floating, torch.bfloat16),
        "float32": partial(floating, torch.float32),
        "oneDNN int8": partial(onednn, shape, weight),
    }
    return {name: makers[name]() for name in names}


def onednn(shape: Shape, weight: Tensor) -> Callable[[], Tensor]:
    """Return oneDNN's int8 product through torch's operators, on codes that are there already."""
    (part,) = quantize_weight(weight, 8)
    scale, zeros = part.qparams.scale.reshape(-1), torch.zeros(shape.weight[0], dtype=torch.int32)
    codes = torch.randint(0, 255, shape.input, dtype=torch.uint8)
    operators = torch.ops.onednn
    tail: tuple[object, ...] = (1.0, 0, torch.bfloat16, "none", [], "")
    if shape.op == "linear":
        packed = operators.qlinear_prepack(part.codes, list(shape.input))
        return lambda: operators.qlinear_pointwise(codes, 0.03, 133, packed, scale, zeros, None, *tail)
    codes = codes.to(memory_format=torch.channels_last)
    geometry = ([shape.stride] * 2, [shape.padding] * 2, [1, 1], 1)
    packed = operators.qconv_prepack(part.codes, scale, 0.03, 133, *geometry, list(shape.input))
    return lambda: operators.qconv_pointwise(codes, 0.03, 133, packed, scale, zeros, None, *geometry, *tail)


def table(rows: Sequence[Row], names: Sequence[str], roofline: Roofline) -> Table:
    """Return the rows, and a last one for all calls of a whole UNet together; rates in GOP/s."""
    made = Table(
        title="GOP/s; ours and floating point include all they do, oneDNN's is the product alone. Share: of the best "
        f"int8 rate seen, W8A8's. Below {GOOD:.0%}: where its time goes besides the product at that rate"
    )
    for name in ("layer", "calls", *names, "share", f"below {GOOD:.0%}"):
        made.add_column(name, justify="left" if name in ("layer", f"below {GOOD:.0%}") else "right")
    for row in rows:
        share = row.share(roofline)
        rates = (f"{row.rate(name) / 1e9:.0f}" for name in names)
        text = "" if share is None else f"{share:.0%}"
        made.add_row(str(row.shape), str(row.calls), *rates, text, row.reason(roofline))
    operations = sum(row.calls * row.shape.operations for row in rows)
    seconds = {name: sum(row.calls * row.seconds[name] for row in rows) for name in names}
    made.add_section()
    made.add_row("all calls", "", *(f"{operations / seconds[name] / 1e9:.0f}" for name in names))
    made.add_row("seconds of all calls", "", *(f"{seconds[name]:.2f}" for name in names))
    return made


if __name__ == "__main__":
    main()
