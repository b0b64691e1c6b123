"""What a call of SDXL's UNet launches on a card that is not here: how many of our kernels, and that all compile for it.

Needs no GPU. The model lies on the CPU; kernels get the arguments that they would get on the card, and are compiled for
it in place of being launched, so that outputs hold nothing. Ends with code 1 where one does not compile.

    python -m benchmarks.cuda.launches --capability 9.0 --plan W8A8 W4A8

Compiled kernels stay in Triton's cache (~/.triton), where a second run finds them.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import sdxl
from benchmarks.case import SIZES, random_unet
from benchmarks.conversion import record_of, table_of
from benchmarks.cuda.timing import said
from mixdq.conversion.convert import convert
from mixdq.runtime import blocks
from mixdq.runtime.blocks import fold_blocks
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.kernels.gpu.configurations import Card
from mixdq.runtime.layer import QuantizedLayer
from mixdq.types.plan import BitPlan, LayerBits

MULTIPROCESSORS = {"8.0": 108, "8.6": 84, "8.9": 128, "9.0": 132, "10.0": 148, "12.0": 170}
"""Of A100, RTX 3090, RTX 4090, H100, B200, RTX 5090: compute capability -> multiprocessors."""


@dataclass
class Launches:
    """What was launched, by kernel: how often, what was compiled for it, and why not."""

    counts: Counter[str] = field(default_factory=Counter)
    compiled: dict[str, dict[int, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@contextmanager
def absent(capability: str) -> Iterator[Launches]:
    """Have kernels compiled for a card, and counted, in place of being launched, on tensors of the CPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.errors import TritonError
    from triton.runtime.jit import JITFunction

    major, minor = map(int, capability.split("."))
    seen = Launches()
    launch = JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **more: Any) -> None:
        name = kernel.__name__
        seen.counts[name] += 1
        try:
            made = launch(kernel, *args, grid=grid, warmup=True, **more)
        except (TritonError, RuntimeError, TypeError, ValueError) as error:
            seen.failed[f"{name}: {said(error)}"] = name
        else:
            seen.compiled.setdefault(name, {})[id(made)] = made

    class Driver:
        """As much of one as compiling asks for."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 10 * major + minor, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, _: int) -> int:
            return 0

    card = Card(capability=(major, minor), multiprocessors=MULTIPROCESSORS[capability])
    with ExitStack() as patches:
        for target, name, stand_in in (
            (JITFunction, "run", compile_only),
            (available, "device_type", lambda: "cpu"),
            (available, "trouble", lambda: None),
            (available, "card", lambda _: card),
            (blocks, "DEVICE", "cpu"),
        ):
            patches.enter_context(patch.object(target, name, stand_in))
        # For this process: where there is no GPU there is no other to go back to.
        triton.runtime.driver.set_active(Driver())
        yield seen


def model_of(size: str, plan: list[str]) -> torch.nn.Module:
    """Return the UNet with its layers of the plan's bits in turn, on our kernels, folded."""
    model: torch.nn.Module = random_unet(*SIZES[size], torch.float16)
    table = table_of(model)
    bits = {spec.name: LayerBits.parse(one) for spec, one in zip(table, cycle(plan), strict=False)}
    convert(model, BitPlan(name="launches", layers=bits), table, record_of(table))
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            module.use_backend("cuda")
    fold_blocks(model)
    return model


def main() -> None:
    """Print a row for each kernel."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda.launches", description=__doc__)
    parser.add_argument("--capability", choices=list(MULTIPROCESSORS), default="9.0")
    parser.add_argument("--plan", nargs="+", default=["W8A8"], metavar="BITS", help="layers take these in turn")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--side", type=int, default=64, help="of the latent; pictures are eight times as large")
    given = parser.parse_args()
    console = Console()
    with absent(given.capability) as seen, torch.inference_mode():
        model = model_of(given.size, given.plan)
        arguments = sdxl.inputs(given.batch, given.side, torch.float16)
        started = time.perf_counter()
        # What is joined is so after the first call.
        model(**arguments)
        seconds = time.perf_counter() - started
        seen.counts.clear()
        model(**arguments)
    table = Table(title=f"{' '.join(given.plan)}, {given.capability}, compiled in {seconds:.0f} s")
    for name in ("kernel", "launches in a call", "compiled kernels", "shared memory, KiB"):
        table.add_column(name, justify="left" if name == "kernel" else "right")
    for name, count in seen.counts.most_common():
        made = seen.compiled.get(name, {}).values()
        shared = max((kernel.metadata.shared for kernel in made), default=0) // 1024
        table.add_row(name, f"{count}", f"{len(made)}", f"{shared}")
    table.add_row("all", f"{seen.counts.total()}", f"{sum(map(len, seen.compiled.values()))}", "")
    console.print(table)
    for error in seen.failed:
        console.print(f"not compiled: {error}", markup=False)
    if seen.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
