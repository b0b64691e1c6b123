"""Sensitivity analysis killed at random moments: the table must come out the same, byte for byte.

Two nodes of Ray on this machine, a worker of which is killed with -9 in the middle, and once a whole node; and the
local engine, killed with -9 and gone on with. With `--method sketch` or `hybrid` the vectors of the sketch must come
out the same too. Ends with code 1 if any file differs.
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
from mixdq.config import CalibrationConfig, GenerationConfig, ModelConfig, RunConfig, SensitivityConfig
from mixdq.sensitivity.measure import METHODS
from mixdq.store.sketch_file import read_sketch
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.workflow import steps
from mixdq.workflow.planning import SKETCH
from mixdq.workflow.session import Session

SECONDS_BETWEEN_LOOKS = 0.005

# A server that has imported everything forks each process anew: nothing has been computed in it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["mixdq.workflow.steps", "mixdq.integrations.diffusers", "ray"])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kill: of what, what was on disk, the seconds of the whole, and whether it all came out the same."""

    killed: str
    vectors: int
    scores: int
    seconds: float
    equal: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Measure once in peace, then with kills; print, write, and end with code 1 where a table differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_kills", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one worker alone: does it run")
    parser.add_argument("--method", choices=METHODS, default="exact", help="how sensitivities are found")
    parser.add_argument("--workers", type=measuring.count, default=10, help="how many times a worker is killed")
    parser.add_argument("--searches", type=measuring.count, default=20, help="how many local searches are killed")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    chances = random.Random(arguments.seed)
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="mixdq-benchmark-") as name:
        folder = Path(name)
        calm = _begin(folder, arguments.method)
        started = time.perf_counter()
        _measure(calm, None)
        seconds = time.perf_counter() - started
        case = _Case(calm, chances)
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

    def __init__(self, calm: Path, chances: random.Random) -> None:
        self._calm, self._chances = calm, chances
        self._expected, self._whole = _files(calm), _found(calm)

    def search(self, seconds: float) -> Row:
        """Kill a local search at any moment of its `seconds`, and go on with it."""
        run, started = self._fresh(), time.perf_counter()
        process = _start(run)
        time.sleep(self._chances.uniform(0, seconds))
        process.kill()
        process.join()
        found = _found(run)
        _finish(_start(run))
        return self._row("a local search", found, started, run)

    def cluster(self, nodes: Nodes, what: str) -> Row:
        """Kill a worker, or a whole node, as soon as a number of results is there, and wait for the rest."""
        run, started = self._fresh(), time.perf_counter()
        process = _start(run, nodes.address)
        # Not the last ones: looking for the workers takes a moment too. Scores of a sketch come all at once.
        ends = [end for end in (self._whole[0], sum(self._whole) - 20) if end > 1]
        enough = self._chances.randrange(1, self._chances.choice(ends))
        while process.is_alive() and sum(_found(run)) < enough:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        found = _found(run)
        if what == "a node":
            nodes.lose()
        else:
            self._chances.choice(nodes.workers()).kill()
        _finish(process)
        return self._row(what, found, started, run)

    def _fresh(self) -> Path:
        """Return a copy of the run without what was measured."""
        run = self._calm.with_name("run")
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self._calm, run, ignore=shutil.ignore_patterns(*self._expected))
        return run

    def _row(self, killed: str, found: tuple[int, int], started: float, run: Path) -> Row:
        seconds = time.perf_counter() - started
        equal = _files(run) == self._expected
        return Row(killed=killed, vectors=found[0], scores=found[1], seconds=seconds, equal=equal)


def _begin(folder: Path, method: str) -> Path:
    """Return a run of a tiny model that is calibrated."""
    tiny_sdxl_pipeline().save_pretrained(folder / "model")
    prompts = folder / "prompts.txt"
    prompts.write_text("a red dog\ntwo cats\n", encoding="utf-8")
    config = RunConfig(
        model=ModelConfig(path=str(folder / "model")),
        calibration=CalibrationConfig(prompts=str(prompts), num_prompts=2),
        sensitivity=SensitivityConfig.model_validate({"num_prompts": 2, "method": method}),
        # Two parts of a run, each with slices of its own.
        generation=GenerationConfig(batch_size=1 if method != "exact" else 4),
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


def _files(run: Path) -> dict[str, bytes]:
    """Return what was measured, file by file."""
    paths = [run / "sensitivity.csv", run / SKETCH]
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def _found(run: Path) -> tuple[int, int]:
    """Return how many vectors of a sketch and how many scores are on disk."""
    files = _files(run)
    vectors = len(read_sketch(run / SKETCH).vectors) if SKETCH in files else 0
    # Three lines come before the scores.
    return vectors, max(0, files.get("sensitivity.csv", b"").count(b"\n") - 3)


def _print(rows: Sequence[Row], seconds: float) -> None:
    table = Table("killed", "times", "vectors + scores there were then", "seconds", "files equal")
    for killed in dict.fromkeys(row.killed for row in rows):
        these = [row for row in rows if row.killed == killed]
        table.add_row(
            killed,
            str(len(these)),
            " ".join(f"{a}+{b}" if a else str(b) for a, b in sorted((row.vectors, row.scores) for row in these)),
            f"{sum(row.seconds for row in these) / len(these):.1f}",
            f"{sum(row.equal for row in these)} of {len(these)}",
        )
    console = measuring.console()
    console.print(table)
    console.print(f"In peace the local engine takes {seconds:.1f} s, reading the model included.")


if __name__ == "__main__":
    main()
