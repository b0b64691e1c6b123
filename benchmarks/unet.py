"""SDXL's UNet as a whole: seconds of a call and memory, ours beside floating point and other quantizers.

Every candidate has a process of its own, so that its peak memory is its own. All are loaded, then called in turns.
Weights are random: they decide what is drawn, not how long it takes.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks import measuring, sdxl
from benchmarks.candidates import CANDIDATES, MissingError
from mixdq.evaluation.memory import peak_resident_bytes

MIB = 2**20
SIZES = {"full": (sdxl.FULL, (320, 640, 1280)), "cut": (sdxl.CUT, (320, 640, 1280)), "smoke": ((1, 1, 1), (64, 64, 64))}


def main() -> None:
    """Start a process for each candidate, time them in turns, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unet", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="cut", help="full: 2.57 G weights; cut: 0.90 G")
    parser.add_argument("--smoke", action="store_true", help="a tiny one: does it run")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--side", type=int, default=64, help="of the latent; 64 is 512 px")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--worker", choices=CANDIDATES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.size, arguments.side = "smoke", 16
    if arguments.worker:
        work(arguments)
        return
    rows = compare(arguments, Console())
    Console().print(table(rows))
    if arguments.json:
        facts = {"size": arguments.size, "batch": arguments.batch, "side": arguments.side}
        measuring.write_json(arguments.json, rows, **facts)


def work(arguments: argparse.Namespace) -> None:
    """Be one candidate: load, say what it weighs, then for every line that comes call once and say the seconds."""
    layers, channels = SIZES[arguments.size]
    torch.manual_seed(0)
    try:
        call, weight_bytes = CANDIDATES[arguments.worker](
            lambda dtype: random_unet(layers, channels, dtype), arguments.batch, arguments.side
        )
    except MissingError as reason:
        print("missing", reason, flush=True)
        return
    with torch.inference_mode():
        cold = measuring.seconds_of(call)
        print("ready", cold, weight_bytes, flush=True)
        for _ in sys.stdin:
            print(measuring.seconds_of(call), peak_resident_bytes(), flush=True)


def compare(arguments: argparse.Namespace, console: Console) -> list[dict[str, object]]:
    """Return one row for each candidate; those that cannot run here have a reason instead of numbers."""
    rows: list[dict[str, object]] = []
    running: dict[str, subprocess.Popen[str]] = {}
    for name in arguments.only:
        worker = start(name, arguments)
        with console.status(f"loading {name}"):
            answer = read(worker)
        if answer[:1] == ["ready"]:
            running[name] = worker
            rows.append({"name": name, "first_call": float(answer[1]), "weight_bytes": int(answer[2])})
        else:
            rows.append({"name": name, "reason": " ".join(answer[1:]) or "it ended without a word"})
    seconds: dict[str, list[float]] = {name: [] for name in running}
    peaks: dict[str, int] = {}
    for turn in range(arguments.runs):
        for name, worker in running.items():
            with console.status(f"turn {turn + 1} of {arguments.runs}: {name}"):
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                took, peak = read(worker)
            seconds[name].append(float(took))
            peaks[name] = int(peak)
    for row in rows:
        name = str(row["name"])
        if name in running:
            times = seconds[name]
            row |= {"seconds": statistics.median(times), "fastest": min(times), "slowest": max(times)}
            row["peak_bytes"] = peaks[name]
            running[name].communicate()
    return rows


def start(name: str, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    """Return the process of one candidate."""
    words = ["--worker", name, "--size", arguments.size, "--batch", str(arguments.batch), "--side", str(arguments.side)]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.unet", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def read(worker: subprocess.Popen[str]) -> list[str]:
    """Return the words of the next line that a worker says; libraries that chat on standard output are not heard."""
    assert worker.stdout is not None
    for line in worker.stdout:
        words = line.split()
        if words[:1] in (["ready"], ["missing"]) or (len(words) == 2 and words[0].replace(".", "").isdigit()):
            return words
    return []


def random_unet(layers: tuple[int, ...], channels: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    """Return the UNet in `dtype` with small random weights, never held in another."""
    with torch.device("meta"):
        model: nn.Module = sdxl.unet(layers, channels=channels)
    # Module by module, for diffusers warns when it is asked itself.
    for module in model.children():
        module.to(dtype)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.uniform_(-0.03, 0.03)
    model.eval().requires_grad_(False)
    return model


def table(rows: list[dict[str, object]]) -> Table:
    """Return the rows, with how much faster each is than bfloat16 as it comes."""
    plain = next((row["seconds"] for row in rows if row["name"] == "bfloat16" and "seconds" in row), None)
    made = Table(title="SDXL's UNet, one call")
    for name in ("", "seconds", "fastest to slowest", "times bfloat16", "first call, s", "weights, MiB", "peak, MiB"):
        made.add_column(name, justify="right" if name else "left")
    for row in rows:
        if "reason" in row:
            made.add_row(str(row["name"]), f"not run: {row['reason']}")
            continue
        seconds, cold = float(str(row["seconds"])), float(str(row["first_call"]))
        ratio = f"{float(str(plain)) / seconds:.2f}" if plain else ""
        spread = f"{float(str(row['fastest'])):.3f} to {float(str(row['slowest'])):.3f}"
        sizes = [f"{int(str(row[key])) / MIB:.0f}" for key in ("weight_bytes", "peak_bytes")]
        made.add_row(str(row["name"]), f"{seconds:.3f}", spread, ratio, f"{cold:.1f}", *sizes)
    return made


if __name__ == "__main__":
    main()
