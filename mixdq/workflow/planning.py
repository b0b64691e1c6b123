"""The allocation step: from the tables on file to the plans of a sweep. Needs no model and no torch."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixdq.allocation import sweep
from mixdq.config import RunConfig
from mixdq.errors import ArtifactError
from mixdq.store.artifact import digest_of, digest_of_file, expect_origin
from mixdq.store.plan_file import read_plan, write_plan
from mixdq.store.table_file import read_layers, read_sensitivity
from mixdq.types.plan import BitPlan
from mixdq.types.scores import SensitivityTable
from mixdq.workflow.session import Session, prompts_digest
from mixdq.workflow.settings import generation_of, sensitivity_prompts


def allocate(session: Session, *, own: bool = True) -> list[BitPlan]:
    """Return the plans of a run, written to plans/*.toml; `own` as in `Session.resolve`.

    Raises:
        InfeasibleBudgetError: the budget is out of reach.
        ArtifactError: the layer or sensitivity table is missing, damaged, or made from other inputs.
    """
    paths = session.paths
    origin = plans_origin(session.config, paths.sensitivity)
    remeasure = f"mixdq sensitivity {paths.root}"
    with session.advising(paths.sensitivity, remeasure):
        scores = read_sensitivity(paths.sensitivity)
    # Here too where the plans are up to date with their table: the table itself may not be.
    expect_origin(paths.sensitivity, scores.origin, sensitivity_origin(session), remeasure)
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
        "allocation": digest_of(config.allocation.model_dump(mode="json")),
    }


def sensitivity_origin(session: Session) -> dict[str, str]:
    """Return what the sensitivity table of a run must have been made from.

    The calibration's digest is absent where there is no calibration: the two tables are all that allocation needs.
    """
    config, calibration = session.config, session.paths.calibration
    sketched = config.sensitivity
    return {
        **({"calibration": digest_of_file(calibration)} if calibration.exists() else {}),
        "prompts": prompts_digest(sensitivity_prompts(config)),
        "settings": digest_of(
            [
                config.sensitivity.ssim_window,
                config.conversion.symmetric,
                config.conversion.rounding,
                config.conversion.activations,
                generation_of(config),
                # Tables that were measured before there was another way stay good.
                *([] if sketched.method == "exact" else [sketched.method, sketched.tolerance]),
                *([sketched.exact_share] if sketched.method == "hybrid" else []),
            ]
        ),
    }


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


def _make(session: Session, scores: SensitivityTable, origin: Mapping[str, str]) -> list[BitPlan]:
    paths, config = session.paths, session.config
    with session.advising(paths.layers, f"mixdq inspect {config.model.path} -o {paths.root}"):
        table = read_layers(paths.layers)
    found = sweep.allocate(
        table,
        scores,
        config.allocation.budget(layer.name for layer in table),
        objective=config.allocation.objective,
        ratios=config.allocation.ratios,
        max_plans=config.allocation.max_plans,
        symmetric=config.conversion.symmetric,
        origin=origin,
    )
    write_plans(paths.plans, found)
    return found
