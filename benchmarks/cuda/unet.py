"""SDXL's UNet as a whole on a GPU: milliseconds of a call and memory, ours beside float16 and other quantizers.

All candidates are loaded one after the other, which shows what memory each takes, and timed at once, alone; at the end
all are called in turns, and those times take the place of the first. What is known is written after each candidate. All
are compared with the faster one of float16's graphs. With `--tune` the tiles of each of ours are measured on its second
call, in the sizes in which layers run joined and folded, but those that this machine has measured before. Of the plan
"mixed" every layer has the bits, of W8A8, W4A8 and 16, whose time was least in a run of `benchmarks.kernels --device
cuda --json FILE`, given as `--layers FILE`.
"""

import argparse
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import measuring
from benchmarks.case import MissingError, stored_bytes
from benchmarks.cuda.candidates import BASELINES, CANDIDATES, Setting, layer_times
from benchmarks.cuda.timing import Call, failures, graphed, in_turns, need_cuda, said
from benchmarks.peers import installed
from mixdq.runtime.kernels.gpu.tuning import tuning

MIB = 2**20
COLUMNS = ("", "ms", "fastest to slowest", "times as fast", "first, s", "weights", "held", "times less", "peak, MiB")
Write = Callable[[Sequence["Row"], Mapping[str, str]], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A candidate: milliseconds of a call, seconds of the first, and bytes.

    Of its weights as stored; held between calls, without what a graph keeps to itself; allocated at most in a call or
    while its graph is captured, which weights are part of. `tuned` products were measured in `tuning` seconds.
    """

    name: str
    first_call: float
    weight_bytes: int
    held_bytes: int
    peak_bytes: int
    tuned: int = 0
    tuning: float = 0.0
    ms: float = 0.0
    fastest: float = 0.0
    slowest: float = 0.0
    in_turns: bool = False

    def timed(self, timing: measuring.Timing, *, in_turns: bool) -> "Row":
        """Return it with times, of itself alone or in turns with others."""
        median, fastest, slowest = (seconds * 1e3 for seconds in (timing.median, timing.fastest, timing.slowest))
        return replace(self, ms=median, fastest=fastest, slowest=slowest, in_turns=in_turns)

    def against(self, other: "Row | None") -> dict[str, float]:
        """Return how many times as fast as another it is, and how many times less memory it holds."""
        if other is None:
            return {}
        return {"times_as_fast": other.ms / self.ms, "times_less_held": other.held_bytes / self.held_bytes}


def main(arguments: argparse.Namespace) -> None:
    """Load, measure, print and write."""
    times = layer_times(arguments.layers, arguments.batch, arguments.side) if arguments.layers else None
    need_cuda()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    # The workspace that matrix products share stays, and would be held by the first candidate.
    torch.ones(16, 16, dtype=torch.float16, device="cuda").mm(torch.ones(16, 16, dtype=torch.float16, device="cuda"))
    setting = Setting(size=arguments.size, batch=arguments.batch, side=arguments.side, times=times, tune=arguments.tune)
    console = measuring.console()

    def write(rows: Sequence[Row], reasons: Mapping[str, str]) -> None:
        if arguments.json:
            against = baseline(rows)
            facts = {"size": setting.size, "batch": setting.batch, "side": setting.side, "runs": arguments.runs}
            facts |= {"tune": setting.tune, "against": against and against.name, "peers": installed("torchao", "sdnq")}
            written = [asdict(row) | row.against(against) for row in rows]
            measuring.write_json(arguments.json, written, **facts, not_run=reasons)

    with torch.inference_mode():
        rows, reasons = compare(arguments.only or list(CANDIDATES), setting, arguments.runs, write, console)
    console.print(table(rows, f"SDXL's UNet ({setting.size}), batch {setting.batch}, {8 * setting.side} px"))
    for name, reason in reasons.items():
        console.print(f"{name}: not run: {reason}", markup=False)


def compare(
    names: Sequence[str], setting: Setting, runs: int, write: Write, console: Console
) -> tuple[list[Row], dict[str, str]]:
    """Return one row for each candidate, and name -> reason of those that cannot run here.

    `write` is given what is known after each candidate, and at the end.
    """
    ready: dict[str, Call] = {}
    rows: dict[str, Row] = {}
    reasons: dict[str, str] = {}
    expected: tuple[type[Exception], ...] = (MissingError, *failures())
    for name in names:
        try:
            ready[name], rows[name] = measured(name, setting, runs)
            row = rows[name]
            tuned = f", {row.tuned} products tuned in {row.tuning:.0f} s" if row.tuned else ""
            console.print(f"{name}: {row.ms:.2f} ms alone, ready in {row.first_call:.0f} s{tuned}", markup=False)
        except expected as error:
            reasons[name] = said(error)
            console.print(f"{name}: not run: {reasons[name]}", markup=False)
        write(list(rows.values()), reasons)
    try:
        timings = in_turns({name: (call, 1) for name, call in ready.items()}, runs=runs)
    except failures() as error:
        reasons["in turns"] = said(error)
    else:
        rows = {name: row.timed(timings[name], in_turns=True) for name, row in rows.items()}
    write(list(rows.values()), reasons)
    return list(rows.values()), reasons


def measured(name: str, setting: Setting, runs: int) -> tuple[Call, Row]:
    """Return a candidate's call, which owns the model, and its row.

    A first call compiles and joins layers; tiles are measured in the next one, a graph comes after.
    """
    candidate = CANDIDATES[name]
    before = _settled()
    model = candidate.load(setting)
    call = setting.called(model, candidate.how)
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    products, seconds = tuned(call) if setting.tune else (0, 0.0)
    held = _settled() - before
    torch.cuda.reset_peak_memory_stats()
    if candidate.how.endswith("graph"):
        call = graphed([call])
    call()
    torch.cuda.synchronize()
    # Before anything is asked of the model: its state makes portable codes on the device.
    peak = torch.cuda.max_memory_allocated() - before
    (timing,) = in_turns({name: (call, 1)}, runs=runs).values()
    row = Row(name=name, first_call=first, weight_bytes=stored_bytes(model), held_bytes=held, peak_bytes=peak)
    return call, replace(row, tuned=products, tuning=seconds).timed(timing, in_turns=False)


def tuned(call: Call) -> tuple[int, float]:
    """Measure the tiles of our products in a call; return how many, and the seconds of it."""
    started = time.perf_counter()
    with tuning() as tuner:
        call()
    torch.cuda.synchronize()
    return len(tuner.measured), time.perf_counter() - started


def baseline(rows: Sequence[Row]) -> Row | None:
    """Return the fastest of float16's graphs, if one was measured."""
    return min((row for row in rows if row.name in BASELINES), key=lambda row: row.ms, default=None)


def table(rows: Sequence[Row], title: str) -> Table:
    """Return the rows, against the fastest of float16's graphs where one was measured."""
    against = baseline(rows)
    compared = "" if against is None else f"; compared with {against.name}"
    layouts = "Ours, and what is called so, run channels last; others channels first; compiled ones as torch chooses"
    made = Table(title=f"{title}{compared}", caption=layouts)
    for name in COLUMNS:
        made.add_column(name, justify="right" if name else "left")
    for row in rows:
        ratios = [f"{ratio:.2f}" for ratio in row.against(against).values()] or ["", ""]
        weights, held, peak = (f"{size / MIB:.0f}" for size in (row.weight_bytes, row.held_bytes, row.peak_bytes))
        spread = f"{row.fastest:.2f} to {row.slowest:.2f}"
        made.add_row(
            row.name, f"{row.ms:.2f}", spread, ratios[0], f"{row.first_call:.1f}", weights, held, ratios[1], peak
        )
    return made


def _settled() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()
