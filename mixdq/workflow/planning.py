"""The allocation step: from the tables on file to the plans of a sweep. Needs no model and no torch."""

from collections.abc import Mapping
from pathlib import Path

from mixdq.allocation import sweep
from mixdq.config import RunConfig
from mixdq.errors import ArtifactError
from mixdq.store.artifact import digest_of, digest_of_file
from mixdq.store.plan_file import read_plan, write_plan
from mixdq.store.table_file import read_layers, read_sensitivity
from mixdq.types.plan import BitPlan
from mixdq.workflow.session import Session


def allocate(session: Session, *, own: bool = True) -> list[BitPlan]:
    """Return the plans of a run, written to plans/*.toml; `own` as in `Session.resolve`.

    Raises:
        InfeasibleBudgetError: the budget is out of reach.
        ArtifactError: the layer or sensitivity table is missing.
    """
    paths = session.paths
    return session.resolve(
        paths.plans,
        command="mixdq allocate",
        expected=plans_origin(session.config, paths.sensitivity),
        read=lambda: read_plans(paths.plans),
        make=lambda: _make(session),
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


def read_plans(folder: Path) -> tuple[list[BitPlan], Mapping[str, str]]:
    """Return the plans in a folder by name, and what the first was made from; ArtifactError where there is none."""
    plans = [read_plan(path) for path in sorted(folder.glob("*.toml"))]
    if not plans:
        raise ArtifactError(f"{folder}: no plans in it; `mixdq allocate {folder.parent}` makes them")
    return plans, plans[0].origin


def _make(session: Session) -> list[BitPlan]:
    paths, config = session.paths, session.config
    table, scores = read_layers(paths.layers), read_sensitivity(paths.sensitivity)
    found = sweep.allocate(
        table,
        scores,
        config.allocation.budget(layer.name for layer in table),
        objective=config.allocation.objective,
        ratios=config.allocation.ratios,
        max_plans=config.allocation.max_plans,
        origin=plans_origin(config, paths.sensitivity),
    )
    if paths.plans.exists():
        for stale in paths.plans.glob("*.toml"):
            stale.unlink()
    for plan in found:
        write_plan(paths.plans / f"{plan.name}.toml", plan)
    return found
