"""Whole pictures of the embedded model: how many a second, and how long the first takes in a fresh process.

Everything that a user waits for counts: text, every step of the denoiser, decoding. The quantized models have the same
bits in every layer, made here in some seconds; better plans differ in pictures, hardly in time.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import mixdq
from benchmarks import measuring
from benchmarks.workers import SECONDS_TO_SLEEP
from mixdq.allocation.plans import uniform_plan
from mixdq.demo import CALIBRATION_PROMPTS, EVALUATION_PROMPTS, MODEL
from mixdq.errors import MixDQError
from mixdq.evaluation.memory import peak_resident_bytes
from mixdq.pipeline.load import load_pipeline
from mixdq.pipeline.prompts import read_prompts
from mixdq.testing import tiny_sdxl_pipeline

STEPS = (1, 2, 4)
WEIGHT_BITS = {"W8A8": 8, "W4A8": 4}
CANDIDATES = {
    "float32": ("", torch.float32),
    "bfloat16": ("", torch.bfloat16),
    "W8A8, float32": ("W8A8", torch.float32),
    "W4A8, float32": ("W4A8", torch.float32),
    "W8A8, bfloat16": ("W8A8", torch.bfloat16),
    "W4A8, bfloat16": ("W4A8", torch.bfloat16),
}
"""Name -> the quantized model ("" is the one it is made from) and the dtype of all that is not quantized."""
MIB = 2**20


@dataclass(kw_only=True)
class Row:
    """Seconds of one candidate.

    Attributes:
        start, load, first: of a fresh process with compiled kernels: until everything is imported, until the model is
            ready, and the first picture from there.
        first_ever: `load` and `first` together where no kernel has been compiled on the machine yet; None where that
            was not tried, or nothing needs compiling.
        seconds: steps -> of every picture after that.
    """

    name: str
    start: float
    load: float
    first: float
    first_ever: float | None
    peak_bytes: int = 0
    seconds: dict[int, list[float]] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the quantized models, start a process for each candidate, time them in turns, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one candidate: does it run")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--runs", type=measuring.count, default=9)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    names: list[str] = ["W4A8, float32"] if arguments.smoke else arguments.only
    steps = STEPS[:1] if arguments.smoke else STEPS
    runs: int = 1 if arguments.smoke else arguments.runs
    with tempfile.TemporaryDirectory(prefix="mixdq-benchmark-") as folder:
        source = MODEL
        if arguments.smoke:
            source = Path(folder) / "tiny"
            tiny_sdxl_pipeline().save_pretrained(source)
        try:
            models = {"": source, **quantized(source, {CANDIDATES[name][0] for name in names} - {""}, Path(folder))}
        except MixDQError as error:
            raise SystemExit(f"nothing to measure: {error}") from error
        rows = measure(names, models, steps, runs, None if arguments.smoke else Path(folder) / "kernels")
    measuring.console().print(table(rows, steps, source.name))
    if arguments.json:
        measuring.write_json(arguments.json, [asdict(row) for row in rows], model=source.name, batch=1)


def quantized(model: Path, names: set[str], folder: Path) -> dict[str, Path]:
    """Return name -> folder of the model with every layer in the same bits, calibrated on two prompts."""
    made = {}
    for name in sorted(names):
        pipe = load_pipeline(model)
        table = mixdq.inspect(pipe)
        record = mixdq.calibrate(pipe, read_prompts(CALIBRATION_PROMPTS)[:2], table=table)
        mixdq.apply(pipe, uniform_plan(table, WEIGHT_BITS[name], 8), record, table, backend="cpu")
        made[name] = folder / name
        pipe.save_pretrained(made[name])
    return made


def measure(
    names: Sequence[str], models: dict[str, Path], steps: Sequence[int], runs: int, kernels: Path | None
) -> list[Row]:
    """Return the rows: start each candidate in a fresh process, then have each draw a picture a turn.

    `kernels` is an empty folder for compiled kernels; None for the user's own, with no first start before the one that
    counts.
    """
    rows: dict[str, Row] = {}
    running: dict[str, Drawer] = {}
    for name in names:
        model, dtype = CANDIDATES[name]
        cache = None if kernels is None else kernels / name
        first_ever = None
        if model and cache is not None:
            cold = Drawer(models[model], dtype, cache)
            cold.stop()
            first_ever = sum(cold.times[1:])
        running[name] = Drawer(models[model], dtype, cache)
        start, load, first = running[name].times
        rows[name] = Row(name=name, start=start, load=load, first=first, first_ever=first_ever)
    for count in steps:
        for row in rows.values():
            row.seconds[count] = []
        for _ in range(runs):
            for name, drawer in running.items():
                time.sleep(SECONDS_TO_SLEEP)
                seconds, rows[name].peak_bytes = drawer.draw(count)
                rows[name].seconds[count].append(seconds)
    for drawer in running.values():
        drawer.stop()
    return list(rows.values())


class Drawer:
    """A fresh process with a model in it.

    Attributes:
        times: seconds until all is imported, until the model is loaded, and of the first picture.
    """

    def __init__(self, model: Path, dtype: torch.dtype, kernels: Path | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_draw, args=(theirs, model, dtype, kernels, time.time()), daemon=True)
        self._process.start()
        theirs.close()
        self.times: tuple[float, float, float] = self._answer()

    def draw(self, steps: int) -> tuple[float, int]:
        """Return the seconds of a picture, and the most bytes of memory so far."""
        self._connection.send(steps)
        answer: tuple[float, int] = self._answer()
        return answer

    def stop(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise SystemExit(f"a process that draws ended with code {self._process.exitcode}; see above") from None


def _draw(connection: Connection, model: Path, dtype: torch.dtype, kernels: Path | None, started: float) -> None:
    """Be the other process: load, draw, then draw with as many steps as asked until nobody asks."""
    if kernels is not None:
        os.environ["XDG_CACHE_HOME"] = str(kernels)
    imported = time.time() - started
    prompt = read_prompts(EVALUATION_PROMPTS)[:1]
    begun = time.perf_counter()
    pipe = load_pipeline(model, dtype=dtype)
    loaded = time.perf_counter()
    mixdq.generate(pipe, prompt, steps=1)
    connection.send((imported, loaded - begun, time.perf_counter() - loaded))
    while True:
        try:
            steps = connection.recv()
        except EOFError:
            return
        begun = time.perf_counter()
        mixdq.generate(pipe, prompt, steps=steps)
        connection.send((time.perf_counter() - begun, peak_resident_bytes()))


def table(rows: Sequence[Row], steps: Sequence[int], model: str) -> Table:
    """Return the rows: pictures a second at each number of steps, and the seconds of a fresh process."""
    made = Table(title=f"{model}, one picture at a time, {torch.get_num_threads()} threads")
    numbers = [f"pictures/s, {count} step{'s' if count > 1 else ''}" for count in steps]
    for name in ("", *numbers, "imports, s", "load, s", "first, s", "load + first ever, s", "peak, MiB"):
        made.add_column(name, justify="right" if name else "left")
    for row in rows:
        made.add_row(
            row.name,
            *(f"{1 / statistics.median(row.seconds[count]):.2f}" for count in steps),
            *(f"{seconds:.2f}" for seconds in (row.start, row.load, row.first)),
            "" if row.first_ever is None else f"{row.first_ever:.2f}",
            f"{row.peak_bytes / MIB:.0f}",
        )
    return made


if __name__ == "__main__":
    main()
