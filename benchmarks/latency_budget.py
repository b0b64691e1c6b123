"""A budget of milliseconds against the clock: SDXL's UNet of some size, random weights, on the CPU.

Every layer is timed at every pair of widths; for budgets between the fastest plan and the best one the joint program
finds a plan, which is converted and run. Scores are made up, for time does not depend on them. Clocks rise and fall:
each call is made in turns with one of the same model in W8A8, and what it takes is given as it would be in the minutes
when the table was made, too, by what the table has for W8A8.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import nn

from benchmarks import measuring, sdxl
from benchmarks.case import SIZES, random_unet
from benchmarks.conversion import DTYPES, record_of, table_of
from mixdq.allocation.frontier import find_frontier
from mixdq.allocation.joint import allocate, build_program, candidates
from mixdq.conversion.convert import convert
from mixdq.evaluation.pace import Pace
from mixdq.types.latency import LatencyTable
from mixdq.types.layers import Group, LayerTable
from mixdq.types.plan import BitPlan, Budget, LayerBits
from mixdq.types.scores import ROLES, Score, SensitivityTable
from mixdq.workflow.latency import latency_table

EIGHT: dict[Group, tuple[int, ...]] = {"content": (8,), "quality": (8,)}


def main(argv: Sequence[str] | None = None) -> None:
    """Time the layers, find and run a plan for every budget, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency_budget", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="cut", help="full: 2.57 G weights; cut: 0.90 G")
    parser.add_argument("--smoke", action="store_true", help="a tiny one: does it run")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the float model")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--side", type=int, default=64, help="of the latent; 64 is 512 px")
    parser.add_argument("--budgets", type=measuring.count, default=3)
    parser.add_argument("--runs", type=measuring.count, default=7)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    if arguments.smoke:
        arguments.size, arguments.side, arguments.budgets, arguments.runs = "smoke", 16, 1, 1
    rows, latency = measure(
        arguments.size, DTYPES[arguments.dtype], arguments.backend, arguments.side, arguments.budgets, arguments.runs
    )
    measuring.console().print(table(rows))
    if arguments.json:
        facts = {name: str(getattr(arguments, name)) for name in ("size", "dtype", "backend", "side", "runs")}
        measuring.write_json(arguments.json, rows, **facts, rest_ms=latency.rest)


def measure(
    size: str, dtype: torch.dtype, backend: str, side: int, budgets: int, runs: int
) -> tuple[list[dict[str, float]], LatencyTable]:
    """Return milliseconds asked for, foretold and measured of each budget, and the table that foretold them."""
    load = partial(random_unet, *SIZES[size], dtype)
    inputs = sdxl.inputs(1, side, dtype)

    def call(model: nn.Module) -> None:
        with torch.inference_mode():
            model(**inputs)

    def quantized(plan: BitPlan) -> nn.Module:
        model: nn.Module = load()
        convert(model, plan, layers, record, backend=backend)
        call(model)
        return model

    layers = table_of(load())
    record, scores = record_of(layers), made_up(layers)
    budget = Budget(latency_ms=1e9, activation_bits=16.0, activation_choices=EIGHT)
    latency = latency_table(
        load,
        call,
        layers,
        record,
        {layer.name: candidates(layer, budget) for layer in layers},
        Pace(),
        backend=backend,
        repeats=runs,
    )
    eight = LayerBits(weight=8, activation=8)
    control_plan = BitPlan(name="control", layers={layer.name: eight for layer in layers})
    control = quantized(control_plan)
    ends = find_frontier(build_program(layers, scores, budget, latency=latency), 2)
    rows = []
    for number in range(1, budgets + 1):
        asked = ends.least + (ends.greatest - ends.least) * number / (budgets + 1)
        plan = allocate(layers, scores, replace(budget, latency_ms=asked), latency=latency)
        model = quantized(plan)
        times = [
            tuple(measuring.seconds_of(partial(call, one)) for one in (control, model, control)) for _ in range(runs)
        ]
        measured = statistics.median(taken for _, taken, _ in times) * 1000.0
        ratio = statistics.median(2.0 * taken / (before + after) for before, taken, after in times)
        at_pace = ratio * latency.of(control_plan)
        made = {"asked_ms": asked, "foretold_ms": latency.of(plan), "measured_ms": measured, "at_pace_ms": at_pace}
        rows.append({**made, **shares(plan)})
        del model
    return rows, latency


def made_up(layers: LayerTable) -> SensitivityTable:
    """Return scores that rise with the width, by 6 dB a bit, from another height for every layer."""
    rng = np.random.default_rng(0)
    scores = []
    for layer in layers:
        metric = "ssim" if layer.group == "content" else "sqnr"
        for role in ROLES:
            height = rng.normal(scale=6.0)
            for bits in (2, 4, 8):
                decibel = 20.0 + 6.0 * bits + height
                value = decibel if metric == "sqnr" else 1.0 - 10.0 ** (-decibel / 10.0)
                scores.append(Score(layer=layer.name, role=role, num_bits=bits, metric=metric, value=value))
    return SensitivityTable(scores=tuple(scores), origin={})


def shares(plan: BitPlan) -> dict[str, float]:
    """Return widths -> the share of layers that have them."""
    widths = [str(bits) for bits in plan.layers.values()]
    return {one: widths.count(one) / len(widths) for one in sorted(set(widths))}


def table(rows: Sequence[dict[str, float]]) -> Table:
    """Return the rows, with how far the clock is from the budget."""
    made = Table(title=f"SDXL's UNet within a budget of time, {torch.get_num_threads()} threads")
    for name in ("asked, ms", "foretold, ms", "measured, ms", "at the table's pace, ms", "of the budget", "layers"):
        made.add_column(name, justify="right")
    for row in rows:
        widths = ", ".join(f"{share:.0%} {name}" for name, share in row.items() if name.startswith("W"))
        made.add_row(
            *(f"{row[key]:.1f}" for key in ("asked_ms", "foretold_ms", "measured_ms", "at_pace_ms")),
            f"{row['at_pace_ms'] / row['asked_ms']:.3f}",
            widths,
        )
    return made


if __name__ == "__main__":
    main()
