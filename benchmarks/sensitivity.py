"""What finding each layer's sensitivity costs, method by method, and what the plans that come of it are worth.

On the embedded model: work in denoiser calls, seconds, agreement with exact scores, and pictures of held-out prompts
by the plans that each method leads to at equal bytes, simulated. `--sdxl` tells the cost alone, at SDXL's shape with
random weights, by timing single passes.
"""

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from scipy.stats import sem, spearmanr

from benchmarks import measuring, sdxl_search, search_tables
from benchmarks.work import counting
from mixdq.allocation import sweep
from mixdq.allocation.objective import Objective
from mixdq.allocation.plans import mean_bits, uniform_plan, weight_bytes
from mixdq.calibration.collect import calibrate
from mixdq.config import AllocationConfig
from mixdq.demo import CALIBRATION_PROMPTS, EVALUATION_PROMPTS, MODEL
from mixdq.demo.run import undivided
from mixdq.metrics.base import METRICS, Metric
from mixdq.metrics.clip_score import ClipScore
from mixdq.metrics.ssim import ssim_per_picture
from mixdq.pipeline.family import Pipeline, find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.pipeline.load import load_pipeline
from mixdq.pipeline.prompts import read_prompts
from mixdq.pipeline.trace import Trace, record_calls, regenerate
from mixdq.quant.simulate_plan import simulated_plan
from mixdq.selection.choose import choose
from mixdq.sensitivity.measure import METRIC_OF, measure
from mixdq.sensitivity.scorer import TrialScorer
from mixdq.sensitivity.sketch import TOLERANCE
from mixdq.sensitivity.trials import list_trials
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.layers import Group, LayerTable
from mixdq.types.plan import ACTIVATION_CHOICES, BitPlan, Budget
from mixdq.types.scores import Score, ScoreKey, SensitivityTable
from mixdq.types.tensors import CalibrationRecord
from mixdq.workflow.drawing import IMAGE_TOWER

WEIGHTS: dict[Group, tuple[int, ...]] = {"content": (2, 3, 4, 6, 8), "quality": (3, 4, 6, 8)}
"""Widths with which every budget from 3 bits on is within reach."""
BUDGETS = (3.0, 4.0, 5.0, 8.0)
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
PUBLISHED, EXACT, SKETCH, HYBRID = "published", "exact", "sketch", "hybrid"
SAMPLED = 20
"""Of the published procedure one trial in so many is run and timed; its scores must be those of `exact` to the bit."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, what is known of it, and the prompts of every purpose."""

    pipe: Pipeline
    table: LayerTable
    record: CalibrationRecord
    plain: tuple[LayerTable, CalibrationRecord]
    measured: tuple[str, ...]
    chosen: tuple[str, ...]
    held_out: tuple[str, ...]
    metrics: tuple[Metric, ...]
    weights: Mapping[Group, tuple[int, ...]]
    budgets: tuple[float, ...]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure by every method, make and judge the plans; print, and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensitivity", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny model: does it run")
    parser.add_argument("--sdxl", choices=("full", "cut", "smoke"), help="the cost at SDXL's shape instead")
    parser.add_argument("--side", type=int, default=64, help="of SDXL's latent; 64 is 512 px")
    parser.add_argument("--prompts", type=measuring.count, default=1, help="of SDXL, in one batch")
    parser.add_argument("--checkpointing", action="store_true", help="less memory for SDXL's backward pass, more time")
    parser.add_argument("--objective", choices=OBJECTIVES, default=AllocationConfig().objective, help="of the plans")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="of sketched losses, a share of them")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    if arguments.sdxl:
        row = sdxl_search.cost(arguments.sdxl, arguments.side, arguments.prompts, checkpointing=arguments.checkpointing)
        measuring.console().print(sdxl_search.shown(row, arguments.sdxl))
        if arguments.json:
            measuring.write_json(arguments.json, [row], size=arguments.sdxl, side=arguments.side)
        return
    case = tiny_case() if arguments.smoke else emoji_case()
    costs, tables = searches(case, arguments.tolerance)
    rows = agreement(case, tables)
    pictures = judged(case, tables, arguments.objective)
    for shown in (
        search_tables.costs(costs),
        search_tables.agreement(rows),
        search_tables.pictures(pictures, case.metrics),
    ):
        measuring.console().print(shown)
    if arguments.json:
        facts = {"tolerance": arguments.tolerance, "objective": arguments.objective, "prompts": len(case.measured)}
        measuring.write_json(arguments.json, costs, agreement=rows, pictures=pictures, **facts)


def emoji_case() -> Case:
    """Return the embedded model, calibrated and measured as the demo does it."""
    pipe = load_pipeline(MODEL)
    calibration = read_prompts(CALIBRATION_PROMPTS)
    clip = ClipScore.from_pipeline(pipe, MODEL / IMAGE_TOWER)
    return _case(pipe, calibration[:64], calibration[:4], calibration[:16], read_prompts(EVALUATION_PROMPTS), (clip,))


def tiny_case() -> Case:
    """Return some layers of a model of random weights, and few widths."""
    prompts = ("a cat", "a dog at sea")
    # Pictures tell as much as vectors, of which eight need but the least number.
    many = tuple(f"{number} boats" for number in range(8))
    return _case(
        tiny_sdxl_pipeline(),
        prompts,
        many,
        prompts,
        prompts,
        (),
        weights={"content": (2, 8), "quality": (4, 8)},
        budgets=(6.0,),
        every=8,
    )


def _case(
    pipe: Pipeline,
    calibrated: Sequence[str],
    measured: Sequence[str],
    chosen: Sequence[str],
    held_out: Sequence[str],
    metrics: tuple[Metric, ...],
    *,
    weights: Mapping[Group, tuple[int, ...]] = WEIGHTS,
    budgets: tuple[float, ...] = BUDGETS,
    every: int = 1,
) -> Case:
    family, spec = find_family(pipe), GenerationSpec()
    whole = list_layers(pipe, family, spec, model="benchmark")
    table = replace(whole, layers=whole.layers[::every])
    plain = undivided(table)
    return Case(
        pipe=pipe,
        table=table,
        record=calibrate(pipe, family, table, calibrated, spec),
        plain=(plain, calibrate(pipe, family, plain, calibrated, spec, estimator="minmax")),
        measured=tuple(measured),
        chosen=tuple(chosen),
        held_out=tuple(held_out),
        metrics=(METRICS["ssim"], *metrics),
        weights=weights,
        budgets=budgets,
    )


def searches(case: Case, tolerance: float) -> tuple[list[dict[str, object]], dict[str, SensitivityTable]]:
    """Return what each method cost, and its table."""
    pipe, family = case.pipe, find_family(case.pipe)
    denoiser = family.denoiser(pipe)
    trials = list_trials(case.table, case.weights, ACTIVATION_CHOICES, METRIC_OF)
    costs: list[dict[str, object]] = []
    tables: dict[str, SensitivityTable] = {}
    for method in (EXACT, SKETCH, HYBRID):
        with counting(denoiser, case.table) as work:
            started = time.perf_counter()
            tables[method] = measure(
                pipe,
                family,
                case.table,
                case.record,
                case.measured,
                GenerationSpec(),
                weight_bits=case.weights,
                ssim_window=11,
                method=method,
                tolerance=tolerance,
            )
            seconds = time.perf_counter() - started
        costs.append(_cost(method, work.calls / len(case.measured), seconds, tables[method], len(trials)))
    scorer = TrialScorer(
        pipe=pipe,
        denoiser=denoiser,
        layers={layer.name: layer for layer in case.table},
        record=case.record,
        trace=record_calls(pipe, family, case.measured, GenerationSpec()),
        ssim_window=11,
        symmetric=True,
        rounding="nearest",
        prefix_bytes=0,
    )
    some = trials[::SAMPLED]
    started = time.perf_counter()
    scores = [score for trial in some for score in scorer(trial)]
    seconds = (time.perf_counter() - started) * len(trials) / len(some)
    if not set(scores) <= set(tables[EXACT].scores):
        raise SystemExit("replaying from the layer on gives other scores than whole calls")
    return [_cost(PUBLISHED, float(len(trials)), seconds, tables[EXACT], len(trials)), *costs], tables


def _cost(name: str, calls: float, seconds: float, scores: SensitivityTable, trials: int) -> dict[str, object]:
    measured = sum(score.stderr is None for score in scores.scores)
    return {"name": name, "calls": calls, "share": calls / trials, "seconds": seconds, "measured": measured}


def agreement(case: Case, tables: Mapping[str, SensitivityTable]) -> list[dict[str, object]]:
    """Return how the estimates compare with exact scores, by group, role and width."""
    exact = {score.key: score for score in tables[EXACT].scores}
    group_of = {layer.name: layer.group for layer in case.table}
    found: dict[tuple[str, str, int], list[ScoreKey]] = {}
    estimates = {score.key: score for score in tables[SKETCH].scores}
    for key in estimates:
        found.setdefault((group_of[key[0]], key[1], key[2]), []).append(key)
    rows: list[dict[str, object]] = []
    for (group, role, bits), keys in sorted(found.items()):
        true, guessed = ([_decibel(scores[key]) for key in keys] for scores in (exact, estimates))
        finite = [(a, b) for a, b in zip(true, guessed, strict=True) if math.isfinite(a) and math.isfinite(b)]
        rows.append(
            {
                "group": group,
                "role": role,
                "bits": bits,
                "layers": len(keys),
                "spearman": float(spearmanr(true, guessed).statistic),
                "median_error_db": statistics.median(abs(a - b) for a, b in finite),
                "range_db": max(a for a, _ in finite) - min(a for a, _ in finite),
            }
        )
    return rows


def _decibel(score: Score) -> float:
    """Return a score as dB of what it stands for, so that both metrics compare alike."""
    if score.metric == "sqnr":
        return score.value
    return -10.0 * math.log10(1.0 - score.value) if score.value < 1.0 else math.inf


def judged(case: Case, tables: Mapping[str, SensitivityTable], objective: Objective) -> list[dict[str, Any]]:
    """Return the numbers of held-out pictures: floating point, plain quantization, each method's plans.

    Of each plan's pictures SSIM is held against that of `exact`'s, picture by picture: mean, and its standard error.
    """
    family = find_family(case.pipe)
    trace = record_calls(case.pipe, family, case.held_out, GenerationSpec())
    rows = [_numbers("floating point", 16.0, None, case, trace, trace.pictures)]
    for bits in case.budgets:
        plain, record = case.plain
        plan = uniform_plan(plain, int(bits), 8)
        rows.append(_judged("plain", bits, plan, case, trace, plain, record))
        for name, scores in tables.items():
            budget = Budget(weight_bits=bits, activation_bits=8.0, weight_choices=dict(case.weights))
            plans = sweep.allocate(case.table, scores, budget, objective=objective)
            plan, _ = choose(case.pipe, family, case.table, case.record, plans, case.chosen, GenerationSpec())
            rows.append(_judged(name, bits, plan, case, trace, case.table, case.record))
    exact = {row["budget"]: row["ssims"] for row in rows if row["name"] == EXACT}
    for row in rows:
        ssims = row.pop("ssims")
        if row["budget"] in exact:
            beyond = np.subtract(ssims, exact[row["budget"]])
            row |= {"beyond_exact": float(beyond.mean()), "beyond_exact_stderr": float(sem(beyond))}
    return rows


def _judged(
    name: str, bits: float, plan: BitPlan, case: Case, trace: Trace, table: LayerTable, record: CalibrationRecord
) -> dict[str, Any]:
    with simulated_plan(find_family(case.pipe).denoiser(case.pipe), table, plan.layers, record):
        return _numbers(name, bits, plan, case, trace, regenerate(case.pipe, trace))


def _numbers(
    name: str, bits: float, plan: BitPlan | None, case: Case, trace: Trace, pictures: torch.Tensor
) -> dict[str, Any]:
    numbers = {metric.name: metric(trace.pictures, pictures, case.held_out) for metric in case.metrics}
    ssims = ssim_per_picture(trace.pictures, pictures).tolist()
    size = None if plan is None else weight_bytes(plan, case.table)
    mean = 16.0 if plan is None else mean_bits(plan, case.table)[0]
    return {"name": name, "budget": bits, "weight_bits": mean, "weight_bytes": size, "ssims": ssims, **numbers}


if __name__ == "__main__":
    main()
