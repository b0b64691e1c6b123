"""The fit of the error model: random plans, each simulated whole and compared by its pictures, one after the other."""

import logging
from collections.abc import Mapping

from mixdq.allocation.error_model import fit_error_model, loss_sums, random_plans
from mixdq.metrics.base import METRICS
from mixdq.selection.choose import score_plans
from mixdq.store.aside import aside
from mixdq.store.objective_file import ObjectiveFile, read_objective, write_objective
from mixdq.types.layers import LayerTable
from mixdq.types.scores import ErrorModel, SensitivityTable
from mixdq.types.tensors import CalibrationRecord
from mixdq.workflow import planning
from mixdq.workflow.origins import objective_origin
from mixdq.workflow.session import Session
from mixdq.workflow.settings import selection_prompts

log = logging.getLogger(__name__)


def fit(session: Session, table: LayerTable, record: CalibrationRecord, *, own: bool = True) -> ErrorModel:
    """Return how losses add up to a picture's error, written to objective.json; `own` as in `Session.resolve`.

    The file is written after every plan, and an interrupted fit goes on from it; one of other settings is kept under
    another name.

    Raises:
        ArtifactError: the sensitivity table is missing, damaged or made from other inputs.
        NonFiniteError: a plan's pictures hold NaN.
    """
    scores, path = planning.scores_of(session), session.paths.root / planning.OBJECTIVE
    origin = objective_origin(session)

    def read() -> tuple[ErrorModel | None, Mapping[str, str]]:
        found = read_objective(path)
        # One that is not done has the origin of nothing: it is gone on with.
        return found.model, found.origin if found.model is not None else {}

    model = session.resolve(
        path,
        command="mixdq fit",
        expected=origin,
        read=read,
        make=lambda: _fit(session, table, record, scores, origin),
        own=own,
    )
    assert model is not None
    return model


def _fit(
    session: Session,
    table: LayerTable,
    record: CalibrationRecord,
    scores: SensitivityTable,
    origin: Mapping[str, str],
) -> ErrorModel:
    config, path = session.config, session.paths.root / planning.OBJECTIVE
    budget = config.allocation.budget(layer.name for layer in table)
    plans = random_plans(table, scores, budget, config.allocation.fit_plans, config.generation.seed)
    known: dict[str, float] = {}
    if path.exists():
        before = read_objective(path)
        if before.origin == origin:
            known = dict(before.errors)
        else:
            aside(path)
    left = plans[len(known) :]
    session.progress(len(known), len(plans), "fit")
    if left:
        for name, similarity in score_plans(
            session.pipe,
            session.family,
            table,
            record,
            left,
            selection_prompts(config),
            session.spec,
            judge=METRICS["ssim"],
            symmetric=config.conversion.symmetric,
            rounding=config.conversion.rounding,
            activations=config.conversion.activations,
            batch_size=config.generation.batch_size,
        ):
            known[name] = 1.0 - similarity
            write_objective(path, ObjectiveFile(errors=known, origin=origin))
            session.progress(len(known), len(plans), "fit")
    model = fit_error_model(loss_sums(table, scores, plans), [known[plan.name] for plan in plans])
    write_objective(path, ObjectiveFile(errors=known, model=model, origin=origin))
    log.info("fitted the error of pictures on %d plans: Spearman %.3f on those left out", len(plans), model.correlation)
    return model
