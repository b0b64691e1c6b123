"""The steps of a run in their order, each reading its file where that is up to date and making it where not.

`own` says that a step itself was asked for; see `Session.resolve`. Allocation, which needs no model, is in planning.py;
what is done with a plan is in variants.py.
"""

from dataclasses import replace
from pathlib import Path

from mixdq.calibration import collect
from mixdq.config import match_layers
from mixdq.pipeline.layers import list_layers
from mixdq.selection import choose as selection
from mixdq.sensitivity.measure import METRIC_OF
from mixdq.store.artifact import digest_of, digest_of_file
from mixdq.store.json_file import read_json, write_json
from mixdq.store.plan_file import dump_plan, read_plan, write_plan
from mixdq.store.record_file import read_record, write_record
from mixdq.store.table_file import LAYERS, read_layers, write_layers
from mixdq.types.evaluation import Evaluation
from mixdq.types.latency import LatencyTable
from mixdq.types.layers import Group, LayerTable
from mixdq.types.plan import BitPlan
from mixdq.types.receipt import Receipt
from mixdq.types.scores import ErrorModel, SensitivityTable
from mixdq.types.tensors import CalibrationRecord
from mixdq.workflow import latency, measuring, objective, planning, variants
from mixdq.workflow.doctor import PLAIN, check_backend_works
from mixdq.workflow.fitting import ARCHITECTURE, architecture_digest, carried_plan
from mixdq.workflow.reporting import CHOICE, report
from mixdq.workflow.session import Session, prompts_digest
from mixdq.workflow.settings import (
    calibration_prompts,
    device_of,
    dtype_of,
    engine_of,
    generation_of,
    selection_prompts,
)


def run(session: Session) -> tuple[list[Evaluation], Path]:
    """Do every step that is not up to date; return the numbers (floating point first) and the report's path.

    Raises:
        NoBackendError: nobody runs quantized layers where the model is to be; said here, before any long work.
        ConfigError, ClusterError: the engine for sensitivity cannot work; said here too.
    """
    check_backend(session)
    engine_of(session.config, in_memory=session.in_memory)
    evaluations = evaluate(session)
    return evaluations, report(session)


def check_backend(session: Session, plan: BitPlan | None = None) -> None:
    """Return if the run's backend works on the model's device and in its dtype; NoBackendError otherwise.

    With a plan for layers of its widths, else for those of W8A8.
    """
    config = session.config
    widths = PLAIN if plan is None else plan.layers.values()
    if session.in_memory:
        denoiser = session.family.denoiser(session.pipe)
        weight = next(denoiser.parameters())
        check_backend_works(config.conversion.backend, weight.device.type, weight.dtype, widths)
    else:
        check_backend_works(config.conversion.backend, device_of(config), dtype_of(config), widths)


def inspect(session: Session, *, own: bool = True) -> LayerTable:
    """Return the layers of the model, written to layers.json.

    Raises:
        ConfigError: a pattern of layers to keep matches none; said here, before any long work.
    """
    path, config = session.paths.layers, session.config
    origin = {
        "model": digest_of(config.model.model_dump(mode="json")),
        "size": digest_of([config.generation.height, config.generation.width]),
        **session.weights,
    }

    def make() -> LayerTable:
        table = list_layers(session.pipe, session.family, session.spec, model=config.model.path)
        write_layers(path, table, origin)
        return table

    table = session.resolve(
        path,
        command=f"mixdq inspect {config.model.path} -o",
        expected=origin,
        read=lambda: (read_layers(path), read_json(path, LAYERS).origin),
        make=make,
        own=own,
    )
    match_layers(config.allocation.keep, [layer.name for layer in table], setting="allocation.keep")
    return table


def calibrate(session: Session, *, own: bool = True) -> CalibrationRecord:
    """Return ranges and BOS rows, written to calibration.safetensors."""
    table = inspect(session, own=False)
    return calibrate_as(session, table, session.config.calibration.estimator, session.paths.calibration, own=own)


def calibrate_as(
    session: Session, table: LayerTable, estimator: str, path: Path, *, own: bool = True
) -> CalibrationRecord:
    """Return ranges and BOS rows of `table`, which may treat layers otherwise than the model's own, kept in `path`."""
    config = session.config
    prompts = calibration_prompts(config)
    origin = {
        "layers": session.layers_digest(table),
        "prompts": prompts_digest(prompts),
        "settings": digest_of([estimator, config.calibration.batch_size, generation_of(config)]),
    }

    def make() -> CalibrationRecord:
        record = collect.calibrate(
            session.pipe,
            session.family,
            table,
            prompts,
            session.spec,
            estimator=estimator,
            batch_size=config.calibration.batch_size,
            progress=session.progress,
        )
        write_record(path, replace(record, origin=origin))
        # What was written is what is used from now on, in this run and when it is continued.
        return read_record(path)

    def read() -> tuple[CalibrationRecord, dict[str, str]]:
        record = read_record(path)
        return record, dict(record.origin)

    return session.resolve(path, command="mixdq calibrate", expected=origin, read=read, make=make, own=own)


def measure(session: Session, *, metric_of: dict[Group, tuple[str, ...]] | None = None) -> SensitivityTable:
    """Return the scores of every layer, written to sensitivity.csv row by row.

    Raises:
        ArtifactFormatError: everything was asked for, and the table is damaged.
        ConfigError, ClusterError: the engine cannot work.
    """
    record = calibrate(session, own=False)
    return measuring.measure(session, inspect(session, own=False), record, metric_of or METRIC_OF)


def fit(session: Session, *, own: bool = True) -> ErrorModel:
    """Return how losses add up to a picture's error, written to objective.json plan by plan."""
    return objective.fit(session, inspect(session, own=False), calibrate(session, own=False), own=own)


def time_layers(session: Session, *, own: bool = True, tune: bool = False) -> LatencyTable:
    """Return the milliseconds of every layer at every pair of widths, written to latency.json.

    With `tune` a GPU's kernels are measured in all their tiles before, and the layers anew.
    """
    table, record = inspect(session, own=False), calibrate(session, own=False)
    return latency.measure_latency(session, table, record, own=own, tune=tune)


def choose(session: Session, *, own: bool = True) -> BitPlan:
    """Return the plan whose pictures are best, written to plan.toml.

    A plan that was found for another model and carried here is as good as chosen, until choice itself, or everything,
    is asked for.
    """
    if not (own or session.everything):
        carried = carried_plan(session)
        if carried is not None:
            return carried
    measure_first(session)
    plans = planning.allocate(session, own=False)
    return choose_among(session, plans, session.paths.plan, own=own)


def measure_first(session: Session) -> None:
    """Bring the sensitivity table up to date where everything was asked for."""
    if session.everything:
        measure(session)
        if planning.calibrated(session.config):
            fit(session, own=False)
        if planning.timed(session.config):
            time_layers(session, own=False)


def choose_among(session: Session, plans: list[BitPlan], path: Path, *, own: bool = True) -> BitPlan:
    """Return the best of `plans` by its pictures, kept in `path`."""
    record, table = calibrate(session, own=False), inspect(session, own=False)
    config = session.config
    prompts = selection_prompts(config)
    origin = {
        "plans": digest_of([dump_plan(plan) for plan in plans]),
        "calibration": digest_of_file(session.paths.calibration),
        "selection": digest_of([config.selection.metric, prompts_digest(prompts), generation_of(config)]),
    }

    def make() -> BitPlan:
        best, scores = selection.choose(
            session.pipe,
            session.family,
            table,
            record,
            plans,
            prompts,
            session.spec,
            metric=config.selection.metric,
            symmetric=config.conversion.symmetric,
            rounding=config.conversion.rounding,
            activations=config.conversion.activations,
            batch_size=config.generation.batch_size,
            progress=session.progress,
        )
        plan = replace(best, origin={**best.origin, **origin, ARCHITECTURE: architecture_digest(table)})
        write_json(path.with_name("choice.json"), CHOICE, {"scores": [list(pair) for pair in scores]}, origin)
        write_plan(path, plan)
        return plan

    def read() -> tuple[BitPlan, dict[str, str]]:
        plan = read_plan(path)
        return plan, dict(plan.origin)

    return session.resolve(path, command="mixdq choose", expected=origin, read=read, make=make, own=own)


def apply(session: Session, *, own: bool = True) -> Receipt:
    """Return what conversion did, with the quantized pipeline written to model/ and the receipt to receipt.json."""
    plan = choose(session, own=False)
    return variants.convert(
        session, session.variant, plan, inspect(session, own=False), calibrate(session, own=False), own=own
    )


def evaluate(session: Session, *, own: bool = True) -> list[Evaluation]:
    """Return the numbers of the floating-point model and of the quantized one, written to evaluation.json."""
    table = inspect(session, own=False)
    # Calibration looks at every layer, and so can name the one that is broken; pictures cannot.
    calibrate(session, own=False)
    # The reference is made before conversion, so that the two models are never in memory together.
    reference = variants.reference(session, table)
    apply(session, own=False)
    plan = read_plan(session.variant.plan)
    quantized = variants.evaluate(session, session.variant, plan, table, reference, own=own)
    return [reference.evaluation, quantized]
