"""Sensitivity analysis killed at random moments: the table must come out the same, byte for byte.

Two nodes of Ray on this machine, a worker of which is killed with -9 in the middle, and once a whole node; and the
local engine, killed with -9 and gone on with. Ends with code 1 if any table differs.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table

from benchmarks import measuring
from benchmarks.ray_nodes import ENVIRONMENT, Nodes
from mixdq.config import CalibrationConfig, ModelConfig, RunConfig, SensitivityConfig
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.workflow import steps
from mixdq.workflow.session import Session

SECONDS_BETWEEN_LOOKS = 0.005

# A server that has imported everything forks each process anew: nothing has been computed in it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["mixdq.workflow.steps", "mixdq.integrations.diffusers", "ray"])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kill: of what, how many scores were on disk, the seconds of the whole, and whether the table is the same."""

    killed: str
    scores: int
    seconds: float
    equal: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Measure once in peace, then with kills; print, write, and end with code 1 where a table differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_kills", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one worker alone: does it run")
    parser.add_argument("--workers", type=measuring.count, default=10, help="how many times a worker is killed")
    parser.add_argument("--searches", type=measuring.count, default=20, help="how many local searches are killed")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    chances = random.Random(arguments.seed)
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="mixdq-benchmark-") as name:
        folder = Path(name)
        calm = _begin(folder)
        started = time.perf_counter()
        _measure(calm, None)
        seconds = time.perf_counter() - started
        case = _Case(calm, _table(calm).read_bytes(), chances)
        rows = [case.search(seconds) for _ in range(0 if arguments.smoke else arguments.searches)]
        nodes = Nodes(folder)
        try:
            rows += [case.cluster(nodes, "a worker") for _ in range(1 if arguments.smoke else arguments.workers)]
            if not arguments.smoke:
                rows.append(case.cluster(nodes, "a node"))
        finally:
            nodes.stop()
    _print(rows, seconds)
    if arguments.json:
        measuring.write_json(arguments.json, [asdict(row) for row in rows], seconds_in_peace=seconds)
    sys.exit(0 if all(row.equal for row in rows) else 1)


class _Case:
    """A run that is calibrated and measured, to be measured again."""

    def __init__(self, calm: Path, expected: bytes, chances: random.Random) -> None:
        self._calm, self._expected, self._chances = calm, expected, chances
        self._scores = _count(expected)

    def search(self, seconds: float) -> Row:
        """Kill a local search at any moment of its `seconds`, and go on with it."""
        run, started = self._fresh(), time.perf_counter()
        process = _start(run)
        time.sleep(self._chances.uniform(0, seconds))
        process.kill()
        process.join()
        scores = _count(_table(run).read_bytes()) if _table(run).exists() else 0
        _finish(_start(run))
        return self._row("a local search", scores, started, run)

    def cluster(self, nodes: Nodes, what: str) -> Row:
        """Kill a worker, or a whole node, as soon as a number of scores is there, and wait for the rest."""
        run, started = self._fresh(), time.perf_counter()
        process = _start(run, nodes.address)
        # Not the last ones: looking for the workers takes a moment too.
        enough = self._chances.randrange(1, self._scores - 20)
        while process.is_alive() and (not _table(run).exists() or _count(_table(run).read_bytes()) < enough):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        scores = _count(_table(run).read_bytes())
        if what == "a node":
            nodes.lose()
        else:
            self._chances.choice(nodes.workers()).kill()
        _finish(process)
        return self._row(what, scores, started, run)

    def _fresh(self) -> Path:
        """Return a copy of the run without its table."""
        run = self._calm.with_name("run")
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self._calm, run)
        _table(run).unlink()
        return run

    def _row(self, killed: str, scores: int, started: float, run: Path) -> Row:
        equal = _table(run).read_bytes() == self._expected
        return Row(killed=killed, scores=scores, seconds=time.perf_counter() - started, equal=equal)


def _begin(folder: Path) -> Path:
    """Return a run of a tiny model that is calibrated."""
    tiny_sdxl_pipeline().save_pretrained(folder / "model")
    prompts = folder / "prompts.txt"
    prompts.write_text("a red dog\ntwo cats\n", encoding="utf-8")
    config = RunConfig(
        model=ModelConfig(path=str(folder / "model")),
        calibration=CalibrationConfig(prompts=str(prompts), num_prompts=2),
        sensitivity=SensitivityConfig(num_prompts=2),
    )
    torch.set_num_threads(1)
    steps.calibrate(Session.start(folder / "calm", config))
    return folder / "calm"


def _start(run: Path, address: str | None = None) -> multiprocessing.context.ForkServerProcess:
    process = _CONTEXT.Process(target=_measure, args=(run, address))
    process.start()
    return process


def _measure(run: Path, address: str | None) -> None:
    torch.set_num_threads(1)
    session = Session.open(run)
    if address is not None:
        engine = session.config.sensitivity.model_copy(update={"engine": "ray", "address": address})
        session.config = session.config.model_copy(update={"sensitivity": engine})
    steps.measure(session)


def _finish(process: multiprocessing.context.ForkServerProcess) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(f"it ended with code {process.exitcode}, and should have gone on to the end")


def _table(run: Path) -> Path:
    return run / "sensitivity.csv"


def _count(table: bytes) -> int:
    """Return how many scores a table holds; three lines come before them."""
    return max(0, table.count(b"\n") - 3)


def _print(rows: Sequence[Row], seconds: float) -> None:
    table = Table("killed", "times", "scores there were then", "seconds", "tables equal")
    for killed in dict.fromkeys(row.killed for row in rows):
        these = [row for row in rows if row.killed == killed]
        table.add_row(
            killed,
            str(len(these)),
            " ".join(str(row.scores) for row in sorted(these, key=lambda row: row.scores)),
            f"{sum(row.seconds for row in these) / len(these):.1f}",
            f"{sum(row.equal for row in these)} of {len(these)}",
        )
    console = measuring.console()
    console.print(table)
    console.print(f"In peace the local engine takes {seconds:.1f} s, reading the model included.")


if __name__ == "__main__":
    main()
