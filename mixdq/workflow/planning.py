"""The allocation step: from the tables on file to the plans of a sweep, or to one plan. Needs no model and no torch."""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mixdq.allocation import joint, sweep
from mixdq.allocation.objective import METRIC_OF
from mixdq.allocation.pairs import find_pairs
from mixdq.config import AllocationConfig, RunConfig
from mixdq.errors import ArtifactError, ConfigError
from mixdq.sensitivity.resume import MemorySink
from mixdq.sensitivity.state import is_complete
from mixdq.sensitivity.trials import list_trials
from mixdq.store.artifact import digest_of, digest_of_file, expect_origin
from mixdq.store.aside import name_aside
from mixdq.store.latency_file import read_latency
from mixdq.store.objective_file import read_objective
from mixdq.store.plan_file import read_plan, write_plan
from mixdq.store.sketch_file import read_sketch
from mixdq.store.table_file import read_estimates, read_layers, read_sensitivity
from mixdq.types.layers import LayerTable
from mixdq.types.plan import BitPlan
from mixdq.types.scores import ErrorModel, SensitivityTable
from mixdq.workflow.origins import is_exact, latency_origin, objective_origin, sensitivity_origin, sketch_origin
from mixdq.workflow.session import Session

log = logging.getLogger(__name__)

OBJECTIVE, LATENCY, SKETCH = "objective.json", "latency.json", "sketch.safetensors"
"""Files of a run: how losses add up to a picture's error; milliseconds of every layer; the vectors of a sketch."""


def allocate(session: Session, *, own: bool = True) -> list[BitPlan]:
    """Return the plans of a run, written to plans/*.toml; `own` as in `Session.resolve`.

    Raises:
        InfeasibleBudgetError: the budget is out of reach.
        ArtifactError: the layer or sensitivity table is missing, damaged, or made from other inputs.
    """
    paths = session.paths
    origin = plans_origin(session.config, paths.sensitivity)
    # Here too where the plans are up to date with their tables: the tables themselves may not be.
    scores = scores_of(session)
    if calibrated(session.config):
        fitted(session)
    return session.resolve(
        paths.plans,
        command="mixdq allocate",
        expected=origin,
        read=lambda: read_plans(paths.plans),
        make=lambda: _make(session, scores, origin),
        own=own,
    )


def plans_origin(config: RunConfig, sensitivity: Path) -> dict[str, str]:
    """Return what the plans of a run must have been made from; ArtifactError where there is no sensitivity table."""
    if not sensitivity.exists():
        raise ArtifactError(f"{sensitivity}: there is no such file; `mixdq sensitivity {sensitivity.parent}` makes it")
    return {
        "sensitivity": digest_of_file(sensitivity),
        "allocation": digest_of(_settings(config.allocation)),
        **({"objective": _digest_of(sensitivity.with_name(OBJECTIVE), "fit")} if calibrated(config) else {}),
        **({"latency": _digest_of(sensitivity.with_name(LATENCY), "benchmark --layers")} if timed(config) else {}),
        **({"sketch": digest_of_file(sketch_of(config, sensitivity))} if config.allocation.pairs else {}),
    }


def calibrated(config: RunConfig) -> bool:
    """Return whether plans are made with an error model, which objective.json holds."""
    return config.allocation.objective == "calibrated"


def timed(config: RunConfig) -> bool:
    """Return whether plans are made under a budget of time, which needs latency.json."""
    return config.allocation.latency_ms is not None


def sketch_of(config: RunConfig, sensitivity: Path) -> Path:
    """Return the file of vectors that pairs of layers are found in, beside the table that was made of them.

    Raises:
        ConfigError: the run's method makes none.
        ArtifactError: it is not there.
    """
    path = sensitivity.with_name(SKETCH)
    if config.sensitivity.method == "exact":
        raise ConfigError(
            f"allocation.pairs = {config.allocation.pairs} beside sensitivity.method = 'exact': how layers interact is "
            "found in the vectors of a sketch; take 'hybrid' or 'sketch'"
        )
    if not path.exists():
        raise ArtifactError(f"{path}: there is no such file; `{_both_anew(sensitivity)}` makes it, and another table")
    return path


def _both_anew(sensitivity: Path) -> str:
    """Return the commands that make a table and the vectors that it is made of; nothing is lost or measured twice."""
    return f"mv {sensitivity} {name_aside(sensitivity)} && mixdq sensitivity {sensitivity.parent}"


def write_plans(folder: Path, plans: Sequence[BitPlan]) -> None:
    """Write the plans into a folder of their own, whole or not at all; what was there before is replaced."""
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        for plan in plans:
            write_plan(partial / f"{plan.name}.toml", plan)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def read_plans(folder: Path) -> tuple[list[BitPlan], Mapping[str, str]]:
    """Return the plans in a folder by name, and what the first was made from; ArtifactError where there is none."""
    plans = [read_plan(path) for path in sorted(folder.glob("*.toml"))]
    if not plans:
        raise ArtifactError(f"{folder}: no plans in it; `mixdq allocate {folder.parent}` makes them")
    return plans, plans[0].origin


def _settings(allocation: AllocationConfig) -> dict[str, Any]:
    """Return the settings that plans depend on; what came later counts only where it is not as it was before."""
    later = AllocationConfig().model_dump(mode="json", include={"program", "latency_ms", "fit_plans", "pairs"})
    settings = allocation.model_dump(mode="json")
    return {name: value for name, value in settings.items() if name not in later or value != later[name]}


def _digest_of(path: Path, verb: str) -> str:
    if not path.exists():
        first, *options = verb.split()
        raise ArtifactError(
            f"{path}: there is no such file; `{' '.join(['mixdq', first, str(path.parent), *options])}` makes it"
        )
    return digest_of_file(path)


def scores_of(session: Session) -> SensitivityTable:
    """Return the run's sensitivity table; ArtifactError where it is missing, damaged, stale or not done."""
    path, remeasure = session.paths.sensitivity, f"mixdq sensitivity {session.paths.root}"
    with session.advising(path, remeasure):
        scores = read_sensitivity(path)
    settings, choices = session.config.sensitivity, session.config.allocation
    if settings.method == "exact":
        expect_origin(path, scores.origin, sensitivity_origin(session), remeasure)
        return scores
    known = MemorySink(scores.origin, (*read_estimates(path).values(), *scores.scores))
    table, metrics = _table(session), {group: (metric,) for group, metric in METRIC_OF.items()}
    trials = list_trials(table, choices.weight_choices, choices.activation_choices, metrics)
    if is_exact(session, scores) and is_complete(trials, table, known):
        return scores
    expect_origin(path, scores.origin, sensitivity_origin(session), remeasure)
    # Estimates alone would give a plan too, another one than was asked for.
    if not is_complete(trials, table, known, method=settings.method, exact_share=settings.exact_share):
        raise ArtifactError(
            f"{path}: the analysis was interrupted, or was of other widths; `{remeasure}` goes on with it"
        )
    return scores


def _table(session: Session) -> LayerTable:
    paths = session.paths
    with session.advising(paths.layers, f"mixdq inspect {session.config.model.path} -o {paths.root}"):
        return read_layers(paths.layers)


def fitted(session: Session) -> ErrorModel:
    """Return the run's error model; ArtifactError where it is missing, damaged, not done or of other settings."""
    path, again = session.paths.root / OBJECTIVE, f"mixdq fit {session.paths.root}"
    with session.advising(path, again):
        objective = read_objective(path)
    expect_origin(path, objective.origin, objective_origin(session), again)
    if objective.model is None:
        raise ArtifactError(f"{path}: only {len(objective.errors)} plans are measured; `{again}` goes on")
    return objective.model


def joint_program(session: Session, scores: SensitivityTable) -> joint.JointProgram:
    """Return the joint program of a run, with its error model and its latency table where the settings name them."""
    root, config, table = session.paths.root, session.config, _table(session)
    error_model = fitted(session) if calibrated(config) else None
    latency = None
    if timed(config):
        path, again = root / LATENCY, f"mixdq benchmark {root} --layers"
        with session.advising(path, again):
            latency = read_latency(path)
        expect_origin(path, latency.origin, latency_origin(session, table), again)
    build = partial(
        joint.build_program,
        table,
        scores,
        config.allocation.budget(layer.name for layer in table),
        error_model=error_model,
        latency=latency,
        symmetric=config.conversion.symmetric,
    )
    if not config.allocation.pairs:
        return build()
    path = sketch_of(config, session.paths.sensitivity)
    again = _both_anew(session.paths.sensitivity)
    with session.advising(path, again):
        sketch = read_sketch(path)
    expect_origin(path, sketch.origin, sketch_origin(session, sketch.columns), again)
    products = sketch.products()
    if missing := sorted(metric for metric, found in products.items() if not len(found)):
        raise ArtifactError(f"{path}: it has no vectors of {', '.join(missing)}; `{again}` makes them")
    pairs = find_pairs(build(), sketch.columns, products, config.allocation.pairs, error_model=error_model)
    log.info("%d pairs of layers interact by more than chance; at most %d count", len(pairs), config.allocation.pairs)
    return build(pairs=pairs)


def _make(session: Session, scores: SensitivityTable, origin: Mapping[str, str]) -> list[BitPlan]:
    paths, config = session.paths, session.config
    if config.allocation.program == "joint":
        program = joint_program(session, scores)
        found = [program.plan(program.solve(), "plan-01", origin)]
    else:
        table = _table(session)
        found = sweep.allocate(
            table,
            scores,
            config.allocation.budget(layer.name for layer in table),
            objective="raw" if config.allocation.objective == "raw" else "linear",
            ratios=config.allocation.ratios,
            max_plans=config.allocation.max_plans,
            symmetric=config.conversion.symmetric,
            origin=origin,
        )
    write_plans(paths.plans, found)
    return found
