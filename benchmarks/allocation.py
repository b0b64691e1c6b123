"""One program against four on the embedded model, what foretells its pictures best, and how long a frontier takes.

Objectives are compared by rank correlation with the measured error of random plans, those of the fit left out. Plans of
both programs are compared at equal bytes and equal mean input bits, on prompts that nothing was found with. With
`--pairs N` sensitivities are sketched, and N pairs of layers that interact, or all of them, are taken into account too.
With `--tables`, a folder of the authors' released tables, the frontier is that of SDXL's 794 layers.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks import interactions, measuring
from benchmarks.released import released_tables
from mixdq.allocation import joint, sweep
from mixdq.allocation.error_model import TERMS, fit_error_model, loss_sums, random_plans
from mixdq.allocation.frontier import find_frontier
from mixdq.allocation.plans import mean_bits, weight_bytes
from mixdq.config import RunConfig
from mixdq.demo.run import demo_config
from mixdq.metrics.base import METRICS
from mixdq.selection.choose import choose, score_plans
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.layers import LayerTable
from mixdq.types.plan import FLOAT_BITS, BitPlan, Budget
from mixdq.types.scores import ROLES, ErrorModel, SensitivityTable
from mixdq.workflow import steps
from mixdq.workflow.session import Session
from mixdq.workflow.settings import evaluation_prompts, selection_prompts

BUDGETS = (8.0, 5.0, 4.0, 3.5)
FIT_PLANS, HELD_OUT = 32, 96


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the embedded model, compare objectives and programs, time the frontier, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.allocation", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny model and few plans: does it run")
    parser.add_argument("--run", type=Path, help="a folder to keep the tables of the model in, for the next time")
    parser.add_argument("--pairs", type=int, default=0, help="pairs of layers that interact, at most")
    parser.add_argument("--tables", type=Path, help="the authors' tables of SDXL-Turbo, for the frontier")
    parser.add_argument("--points", type=measuring.count, default=100, help="of the frontier")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="mixdq-benchmark-") as folder:
        config = demo_config()
        counts = (FIT_PLANS, HELD_OUT)
        if arguments.smoke:
            tiny_sdxl_pipeline().save_pretrained(Path(folder) / "tiny")
            config, counts = _small(demo_config(Path(folder) / "tiny")), (8, 4)
            arguments.points = 5
        if arguments.pairs:
            config = interactions.sketched(config)
        session = Session.start(arguments.run or Path(folder) / "run", config)
        correlations, model = compare_objectives(session, *counts, arguments.pairs)
        rows = compare_programs(session, BUDGETS[1:2] if arguments.smoke else BUDGETS, model, arguments.pairs)
        own = steps.inspect(session), steps.measure(session)
        frontier = time_frontier(*(released_tables(arguments.tables) if arguments.tables else own), arguments.points)
    for made in (_correlation_table(correlations), _program_table(rows)):
        measuring.console().print(made)
    measuring.console().print(
        f"frontier of {frontier['model']}: {frontier['points']} points on {frontier['layers']} layers in "
        f"{frontier['seconds']:.1f} s, {frontier['setting']} {frontier['least']:.3f} to {frontier['greatest']:.3f}, "
        f"gaps to {frontier['greatest_gap']:.0e}"
    )
    if arguments.json:
        measuring.write_json(
            arguments.json,
            rows,
            correlations={name: value for name, (value, _) in correlations.items()},
            spreads={name: off for name, (_, off) in correlations.items() if off is not None},
            error_model=asdict(model),
            frontier=frontier,
        )


def compare_objectives(
    session: Session, fit_plans: int, held_out: int, pairs: int = 0
) -> tuple[dict[str, tuple[float, float | None]], ErrorModel]:
    """Return objective -> how it agrees with 1 - SSIM of plans that nothing was fitted on, and the fit.

    Agreement is Spearman's correlation and, where losses are foretold, the standard deviation of their logarithm's
    error. "raw" sums decibels and SSIM as they are; "raw, weighted" takes the share of the two that is best on the
    plans of the fit, which is what a sweep over k looks for.
    """
    table, scores = steps.inspect(session), steps.measure(session)
    budget = session.config.allocation.budget(layer.name for layer in table)
    plans = random_plans(table, scores, budget, fit_plans + held_out, seed=1)
    errors = 1.0 - np.array(_similarities(session, plans, selection_prompts(session.config)))
    sums, raw = loss_sums(table, scores, plans), _raw_sums(table, scores, plans)
    model = fit_error_model(sums[:fit_plans], list(errors[:fit_plans]))
    weights = np.array([model.weights[group][role] for group, role in TERMS])
    shares = np.logspace(-1, 7, 81)
    best = max(shares, key=lambda share: _spearman((raw @ [share, 1.0])[:fit_plans], errors[:fit_plans]))
    foretold = {
        "raw": raw.sum(axis=1),
        "raw, weighted": raw @ [best, 1.0],
        "linear": sums.sum(axis=1),
        "calibrated": sums @ weights,
    }
    if pairs:
        found = interactions.strongest(session, budget, pairs)
        foretold[f"linear, {len(found)} pairs"] = foretold["linear"] + interactions.of_pairs(found, plans)
        foretold["linear, all pairs"] = np.maximum(foretold["linear"] + interactions.of_all(session, plans), 1e-9)
    left = slice(fit_plans, None)
    off = {
        name: float(np.std(np.log(values[left]) - np.log(errors[left] / (1.0 - errors[left]))))
        for name, values in foretold.items()
        if not name.startswith("raw")
    }
    return {name: (_spearman(values[left], errors[left]), off.get(name)) for name, values in foretold.items()}, model


def compare_programs(
    session: Session, budgets: Sequence[float], model: ErrorModel, pairs: int = 0
) -> list[dict[str, Any]]:
    """Return a row a budget and a way: SSIM and PSNR of the plan's pictures, its bytes, mean bits and widths.

    The split program's plans are the ones that selection keeps; the others may spend what that of "raw" spends.
    """
    table, scores, config = steps.inspect(session), steps.measure(session), session.config
    prompts = evaluation_prompts(config)
    rows = []
    for bits in budgets:
        budget = replace(config.allocation.budget(layer.name for layer in table), weight_bits=bits)
        split = _best(session, sweep.allocate(table, scores, budget, objective="raw"))
        spent = Budget(
            weight_bytes=weight_bytes(split, table),
            activation_bits=mean_bits(split, table)[1],
            weight_choices=budget.weight_choices,
            activation_choices=budget.activation_choices,
        )
        plans = {
            "split, raw": split,
            "split, linear": _best(session, sweep.allocate(table, scores, spent, objective="linear")),
            "joint, linear": joint.allocate(table, scores, spent, name="linear"),
            "joint, calibrated": joint.allocate(table, scores, spent, error_model=model, name="calibrated"),
        }
        if pairs:
            found = interactions.strongest(session, spent, pairs)
            name = f"joint, {len(found)} pairs"
            plans[name] = joint.allocate(table, scores, spent, pairs=found, gap=interactions.GAP, name="pairs")
        similar = _similarities(session, list(plans.values()), prompts)
        signal = _similarities(session, list(plans.values()), prompts, metric="psnr")
        macs = sum(layer.macs for layer in table)
        for (name, plan), ssim, psnr in zip(plans.items(), similar, signal, strict=True):
            floating = [layer for layer in table if plan.layers[layer.name].activation == FLOAT_BITS]
            weight, activation = mean_bits(plan, table)
            rows.append(
                {
                    "budget": bits,
                    "way": name,
                    "ssim": ssim,
                    "psnr_db": psnr,
                    "weight_bytes": weight_bytes(plan, table),
                    "weight_bits": weight,
                    "activation_bits": activation,
                    "macs_with_floating_inputs": sum(layer.macs for layer in floating) / macs,
                }
            )
    return rows


def _best(session: Session, plans: Sequence[BitPlan]) -> BitPlan:
    best, _ = choose(
        session.pipe,
        session.family,
        steps.inspect(session),
        steps.calibrate(session),
        plans,
        selection_prompts(session.config),
        session.spec,
    )
    return best


def time_frontier(table: LayerTable, scores: SensitivityTable, points: int) -> dict[str, Any]:
    """Return the seconds of a frontier of so many points, its ends, and the greatest gap of its proofs."""
    started = time.perf_counter()
    found = find_frontier(joint.build_program(table, scores, Budget(weight_bits=4.0)), points)
    seconds = time.perf_counter() - started
    plans = [plan.solver for plan in found.plans.values() if plan.solver is not None]
    return {
        "model": Path(table.model).name,
        "layers": len(table),
        "points": len(plans),
        "setting": found.setting,
        "seconds": seconds,
        "least": found.least,
        "greatest": found.greatest,
        "greatest_gap": max(solver.gap for solver in plans),
    }


def _similarities(
    session: Session, plans: Sequence[BitPlan], prompts: Sequence[str], *, metric: str = "ssim"
) -> list[float]:
    scored = score_plans(
        session.pipe,
        session.family,
        steps.inspect(session),
        steps.calibrate(session),
        plans,
        prompts,
        session.spec,
        judge=METRICS[metric],
    )
    return [score for _, score in scored]


def _raw_sums(table: LayerTable, scores: SensitivityTable, plans: Sequence[BitPlan]) -> np.ndarray:
    """Return the scores that each plan lacks to the best of its group, [plans, 2], content and quality."""
    known = {(s.layer, s.role, s.num_bits, s.metric): s.value for s in scores.scores}
    metric = {"content": "ssim", "quality": "sqnr"}
    best = {"content": 1.0, "quality": max(s.value for s in scores.scores if s.metric == "sqnr")}
    sums = np.zeros((len(plans), 2))
    for index, plan in enumerate(plans):
        for layer in table:
            for role in ROLES:
                bits = getattr(plan.layers[layer.name], role)
                if bits < FLOAT_BITS:
                    lacking = best[layer.group] - known[layer.name, role, bits, metric[layer.group]]
                    sums[index, ("content", "quality").index(layer.group)] += lacking
    return sums


def _spearman(values: np.ndarray, errors: np.ndarray) -> float:
    return float(spearmanr(values, errors).statistic)


def _small(config: RunConfig) -> RunConfig:
    few = {"num_prompts": 2}
    return config.model_copy(
        update={
            name: getattr(config, name).model_copy(update=few)
            for name in ("calibration", "sensitivity", "selection", "evaluation")
        }
    )


def _correlation_table(correlations: dict[str, tuple[float, float | None]]) -> Table:
    made = Table("objective", "Spearman, plans left out", "spread of ln", title="What foretells the error of pictures")
    for name, (value, off) in correlations.items():
        made.add_row(name, f"{value:.3f}", "" if off is None else f"{off:.3f}")
    return made


def _program_table(rows: Sequence[dict[str, Any]]) -> Table:
    made = Table("budget", "way", "SSIM", "PSNR, dB", "W", "A", "bytes", "MACs with floating inputs")
    for row in rows:
        made.add_row(
            f"{row['budget']:g}",
            row["way"],
            f"{row['ssim']:.4f}",
            f"{row['psnr_db']:.1f}",
            f"{row['weight_bits']:.2f}",
            f"{row['activation_bits']:.2f}",
            str(row["weight_bytes"]),
            f"{row['macs_with_floating_inputs']:.1%}",
        )
    return made


if __name__ == "__main__":
    main()
