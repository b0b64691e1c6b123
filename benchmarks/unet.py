"""SDXL's UNet as a whole: seconds of a call and memory, ours beside floating point and other quantizers.

Every candidate has a process of its own, so that its peak memory is its own. As many as fit in memory are loaded and
called in turns; where not all fit there are several groups, and one candidate is in all of them to compare with.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import measuring
from benchmarks.candidates import CANDIDATES
from benchmarks.case import SIZES, Case, MissingError
from benchmarks.cuda import unet as cuda
from benchmarks.cuda.candidates import CANDIDATES as ON_CUDA
from benchmarks.turns import Row, groups, measure
from benchmarks.workers import prepare

MIB = 2**20
MEMORY_TO_USE = 0.9
"""Of what is free."""
TOO_BUSY = 0.03
"""The share of the machine that others may take before the table says so."""
COLUMNS = ("", "seconds", "fastest to slowest", "times as fast", "first call, s", "weights, MiB", "peak, MiB", "others")


def main(argv: Sequence[str] | None = None) -> None:
    """Start a process for each candidate, time them in turns, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unet", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=SIZES, help="full: 2.57 G weights (cuda's default); cut: 0.90 G (cpu's)")
    parser.add_argument("--smoke", action="store_true", help="a tiny one: does it run")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="candidates")
    parser.add_argument("--against", choices=CANDIDATES, default="bfloat16", metavar="NAME", help="what is 1 x as fast")
    parser.add_argument("--batch", type=measuring.count, default=1)
    parser.add_argument("--side", type=measuring.count, default=64, help="of the latent; 64 is 512 px")
    parser.add_argument("--runs", type=measuring.count, default=5)
    parser.add_argument("--rounds", type=measuring.count, default=1, help="how often all is loaded and measured anew")
    parser.add_argument("--alone", action="store_true", help="one candidate at a time in memory, not in turns")
    parser.add_argument("--cache", type=Path, help="keep what takes minutes to prepare here, for the next time")
    parser.add_argument("--logs", type=Path, help="keep what candidates and their libraries say here")
    parser.add_argument("--layers", type=Path, help="cuda: times of layers, as benchmarks.kernels writes them")
    parser.add_argument("--tune", action="store_true", help="cuda: measure the tiles of our products, and keep them")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    arguments.size = arguments.size or ("full" if arguments.device == "cuda" else "cut")
    if arguments.smoke:
        arguments.size, arguments.side = "smoke", 16
    known = list(ON_CUDA if arguments.device == "cuda" else CANDIDATES)
    arguments.only = list(dict.fromkeys(arguments.only or known))
    if unknown := [name for name in arguments.only if name not in known]:
        parser.error(f"nothing on {arguments.device} is called {', '.join(unknown)}: there are {', '.join(known)}")
    if arguments.device == "cuda":
        cuda.main(arguments)
        return
    console = measuring.console()
    with tempfile.TemporaryDirectory(prefix="mixdq-benchmark-") as folder:
        cache, logs = ((kept or Path(folder)).resolve() for kept in (arguments.cache, arguments.logs))
        logs.mkdir(parents=True, exist_ok=True)
        case = Case(size=arguments.size, batch=arguments.batch, side=arguments.side, cache=cache)
        rows, reasons = compare(arguments, case, logs, console)
    console.print(table(rows))
    for name, reason in reasons.items():
        console.print(f"{name}: not run: {reason}", markup=False)
    if arguments.json:
        facts = {"size": case.size, "batch": case.batch, "side": case.side, "runs": arguments.runs}
        measuring.write_json(arguments.json, [asdict(row) for row in rows], **facts, not_run=reasons)


def compare(
    arguments: argparse.Namespace, case: Case, logs: Path, console: Console
) -> tuple[list[Row], dict[str, str]]:
    """Return one row for each candidate and group, and name -> reason of those that cannot run here."""
    reasons = prepared(arguments.only, case, logs, console)
    able = [name for name in arguments.only if name not in reasons]
    free = measuring.free_bytes()
    split = groups(able, arguments.against, case, None if free is None else free * MEMORY_TO_USE)
    if arguments.alone:
        split = [[name] for name in able]
    split *= arguments.rounds
    rows: list[Row] = []
    for number, names in enumerate(split, 1):
        how = "in turns: " + ", ".join(names) if len(names) > 1 else f"alone: {names[0]}"
        console.print(f"group {number} of {len(split)}, {how}")
        more, why_not = measure(
            names,
            case,
            logs,
            runs=arguments.runs,
            group=number,
            against=arguments.against,
            # Little memory, and nobody asks for the time.
            at_once=arguments.smoke,
        )
        rows += more
        reasons |= why_not
    return rows, reasons


def prepared(names: Sequence[str], case: Case, logs: Path, console: Console) -> dict[str, str]:
    """Do what candidates need done before, while memory is free; return the reasons of those that cannot run here."""
    reasons = {}
    for name in names:
        if CANDIDATES[name].steps:
            console.print(f"preparing {name}")
        try:
            prepare(name, case, logs)
        except MissingError as reason:
            reasons[name] = str(reason)
    return reasons


def table(rows: Sequence[Row]) -> Table:
    """Return the rows, a section for each group."""
    made = Table(title=f"SDXL's UNet, one call, {torch.get_num_threads()} threads; the candidates of a group in turns")
    for name in COLUMNS:
        made.add_column(name, justify="right" if name else "left")
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.group != row.group:
            made.add_section()
        made.add_row(
            row.name,
            f"{row.median:.3f}",
            f"{min(row.seconds):.3f} to {max(row.seconds):.3f}",
            "" if row.times_as_fast is None else f"{row.times_as_fast:.2f}",
            f"{row.first_call:.1f}",
            f"{row.weight_bytes / MIB:.0f}",
            f"{row.peak_bytes / MIB:.0f}",
            _busy(row.others),
        )
    return made


def _busy(others: float | None) -> str:
    if others is None:
        return ""
    return f"{others:.0%}, too busy" if others > TOO_BUSY else f"{others:.0%}"


if __name__ == "__main__":
    main()
