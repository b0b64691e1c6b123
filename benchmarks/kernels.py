"""Every distinct layer of SDXL's UNet, alone: our kernels beside floating point and oneDNN's int8 product."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from benchmarks import measuring, sdxl
from benchmarks.sdxl import Shape
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cpu import CpuBackend
from mixdq.runtime.kernel import KernelRequest
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import QParams, QuantSpec

ACTIVATION = QParams(
    scale=torch.tensor(0.03), zero_point=torch.tensor(5, dtype=torch.int32), spec=QuantSpec(num_bits=8, symmetric=False)
)
COLUMNS = ("W8A8", "W4A8", "bfloat16", "float32", "oneDNN int8")
"""The last one is its product alone, of an input that is quantized already: the rate to be reached."""
SMOKE = (Shape("linear", (64, 96), (1, 33, 96)), Shape("conv2d", (48, 32, 3, 3), (1, 32, 9, 9), 1, 1))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few small layers: does it run")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--side", type=int, default=64, help="of the latent; 64 is 512 px")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    counted = dict.fromkeys(SMOKE, 1) if arguments.smoke else sdxl.shapes(arguments.batch, arguments.side)
    rows = []
    for shape, count in track(sorted(counted.items(), key=lambda one: -one[0].operations * one[1]), "measuring"):
        with torch.inference_mode():
            timings = measuring.in_turns(candidates(shape), runs=arguments.runs, least_seconds=0.02)
        rates = {name: shape.operations / timing.median / 1e9 for name, timing in timings.items()}
        rows.append({"layer": str(shape), "calls": count, "gop": shape.operations / 1e9, "gop_per_second": rates})
    Console().print(table(rows))
    if arguments.json:
        measuring.write_json(arguments.json, rows, batch=arguments.batch, side=arguments.side)


def candidates(shape: Shape) -> dict[str, Callable[[], Tensor]]:
    """Return column -> what is timed, on random numbers."""
    torch.manual_seed(0)
    weight, x = torch.randn(shape.weight), torch.randn(shape.input)
    order = torch.channels_last if shape.op == "conv2d" else torch.contiguous_format

    def ours(num_bits: int) -> Callable[[], Tensor]:
        request = KernelRequest(
            layer=str(shape),
            op="linear" if shape.op == "linear" else "conv2d",
            bits=LayerBits(weight=num_bits, activation=8),
            weight_shape=shape.weight,
            stride=(shape.stride, shape.stride),
            padding=(shape.padding, shape.padding),
            device="cpu",
            dtype=torch.bfloat16,
            output_dtype=torch.bfloat16,
        )
        (part,) = quantize_weight(weight, num_bits)
        kernel = CpuBackend().bind(request, part, None, ACTIVATION)
        mine = x.to(torch.bfloat16).contiguous(memory_format=order)
        return lambda: kernel(mine)

    def floating(dtype: torch.dtype) -> Callable[[], Tensor]:
        w, mine = (tensor.to(dtype).contiguous(memory_format=order) for tensor in (weight, x))
        if shape.op == "linear":
            return lambda: functional.linear(mine, w)
        return lambda: functional.conv2d(mine, w, None, shape.stride, shape.padding)

    return {
        "W8A8": ours(8),
        "W4A8": ours(4),
        "bfloat16": floating(torch.bfloat16),
        "float32": floating(torch.float32),
        "oneDNN int8": onednn(shape, weight),
    }


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


def table(rows: list[dict[str, object]]) -> Table:
    """Return the rows, and a last one for all calls of a whole UNet together; rates in GOP/s."""
    made = Table(title="GOP/s; ours and floating point include all they do, oneDNN's is the product alone")
    for name in ("layer", "calls", *COLUMNS):
        made.add_column(name, justify="left" if name == "layer" else "right")
    seconds, total = dict.fromkeys(COLUMNS, 0.0), 0.0
    for row in rows:
        rates, gop, calls = row["gop_per_second"], row["gop"], row["calls"]
        assert isinstance(rates, dict)
        assert isinstance(gop, float)
        assert isinstance(calls, int)
        made.add_row(str(row["layer"]), str(calls), *(f"{rates[name]:.0f}" for name in COLUMNS))
        total += calls * gop
        for name in COLUMNS:
            seconds[name] += calls * gop / rates[name]
    made.add_section()
    made.add_row("all calls", "", *(f"{total / seconds[name]:.0f}" for name in COLUMNS))
    made.add_row("seconds of all calls", "", *(f"{seconds[name]:.2f}" for name in COLUMNS))
    return made


if __name__ == "__main__":
    main()
