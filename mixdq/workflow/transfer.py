"""A plan carried to another model of the same architecture: what it was measured on is new, the bits are not.

Layers, ranges and BOS rows are found anew; nothing is taken over from the plan's own run but its settings. Before the
model is converted the plan is simulated on a few prompts, and its errors are set beside those of a yardstick.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixdq.allocation.plans import uniform_plan
from mixdq.conversion.check import FLOAT, check_plan, plan_error
from mixdq.errors import ConfigError, NonFiniteError, PlanError
from mixdq.evaluation.compare import compare
from mixdq.metrics.base import METRICS
from mixdq.metrics.sqnr import sqnr
from mixdq.pipeline.trace import record_calls
from mixdq.quant.simulate_plan import simulated_plan
from mixdq.store.artifact import digest_of, digest_of_file
from mixdq.store.json_file import decode, encode, read_json, write_json
from mixdq.store.plan_file import dump_plan, read_plan, write_plan
from mixdq.types.layers import LayerTable
from mixdq.types.plan import BitPlan, LayerBits
from mixdq.types.receipt import Receipt
from mixdq.types.tensors import CalibrationRecord
from mixdq.workflow import source, steps, variants
from mixdq.workflow.drawing import first_outputs
from mixdq.workflow.fitting import (
    ARCHITECTURE,
    TRANSFERRED,
    architecture_digest,
    differences,
    fitted,
    uniform_like,
)
from mixdq.workflow.reporting import TRANSFER
from mixdq.workflow.session import Session, prompts_digest
from mixdq.workflow.settings import evaluation_prompts, generation_of
from mixdq.workflow.verdict import Check, Closeness

if TYPE_CHECKING:
    from mixdq.pipeline.trace import Trace

log = logging.getLogger(__name__)


def write_named_plan(session: Session, bits: LayerBits) -> Path:
    """Return a file of the plan that gives every layer of the session's model the same bits; see `uniform_plan`."""
    plan = uniform_plan(steps.inspect(session), bits.weight, bits.activation, number=bits.number)
    path = session.paths.root / "uniform" / f"{plan.name.replace(' ', '-')}.toml"
    write_plan(path, plan)
    return path


def apply_plan(session: Session, path: Path, *, force: bool = False) -> tuple[Check, Receipt]:
    """Return the verdict on the plan in the file `path` and the receipt; model/ is the model quantized by it.

    The verdict is kept in transfer.json and the plan in plan.toml, so that evaluation, benchmark and report go on from
    there. `force` carries out a plan of another architecture too, or one that ruins the pictures: layers that it says
    nothing of stay in floating point.

    Raises:
        PlanError: the plan is of another architecture, or ruins the pictures; nothing has been converted.
        NonFiniteError: the quantized model's pictures hold NaN or infinity; nothing has been converted.
        NoBackendError: nobody runs such layers here; said before any long work.
    """
    plan, paths = read_plan(path), session.paths
    if path.resolve() == paths.plan.resolve():
        raise ConfigError(f"{path}: the plan of this very run, which `mixdq apply {paths.root}` carries out")
    steps.check_backend(session, plan)
    table = steps.inspect(session)
    wrong = differences(plan, table, source.layers_of(path))
    _refuse(plan, table, wrong, path, force=force)
    plan = fitted(plan, table)
    record = steps.calibrate(session)
    check_plan(plan, table, record, activations=session.config.conversion.activations)
    check = _check(session, plan, path, table, record, len(wrong))
    if check.outcome == "ruins the pictures" and not force:
        raise PlanError(
            f"{check.text}. Nothing was converted: find this model a plan of its own with "
            f"`mixdq quantize {check.model} -o OUT`, or go on all the same with --force.",
            disagreements=[check.text],
        )
    if check.outcome != "holds":
        log.warning(
            "plan %s %s here; `mixdq quantize %s -o OUT` finds one for this model",
            plan.name,
            check.outcome,
            check.model,
        )
    origin = {
        ARCHITECTURE: architecture_digest(table),
        "calibration": digest_of_file(paths.calibration),
        TRANSFERRED: digest_of_file(paths.transfer),
    }
    plan = replace(plan, origin={**plan.origin, **origin})
    if not paths.plan.exists() or paths.plan.read_bytes() != dump_plan(plan).encode():
        write_plan(paths.plan, plan)
    return check, variants.convert(session, session.variant, plan, table, record)


def _refuse(plan: BitPlan, table: LayerTable, wrong: list[str], path: Path, *, force: bool) -> None:
    """Raise PlanError where the plan is of another architecture, unless that is to be passed over and can be."""
    if not wrong:
        return
    error = plan_error(f"{path}: the plan is not for the architecture of {table.model}", wrong)
    if all(bits == FLOAT for bits in fitted(plan, table).layers.values()):
        raise error
    if not force:
        raise PlanError(
            f"{error}\nTake a fine-tune of the plan's own model, or go on all the same with --force: layers that the "
            "plan says nothing of then stay in floating point.",
            disagreements=error.disagreements,
        )
    log.warning("%s", error)


def _check(
    session: Session, plan: BitPlan, path: Path, table: LayerTable, record: CalibrationRecord, wrong: int
) -> Check:
    """Return how a plan fares on this model, measured once and kept in transfer.json."""
    config, kept = session.config, session.paths.transfer
    prompts = evaluation_prompts(config)[: config.selection.num_prompts]
    reported = source.numbers_of(path, config, prompts)
    origin = {
        "plan": digest_of_file(path),
        "calibration": digest_of_file(session.paths.calibration),
        "prompts": prompts_digest(prompts),
        "settings": digest_of([generation_of(config), config.conversion.model_dump(mode="json")]),
        "yardstick": digest_of([reported, wrong]),
    }

    def make() -> Check:
        reference = _draw(session, prompts, "check: floating point")
        measured = _measure(session, plan, table, record, prompts, reference)
        if reported is None:
            plain = uniform_like(plan, table, symmetric=config.conversion.symmetric)
            yardstick = _measure(session, plain, table, record, prompts, reference)
            against = f"a plain plan of as many bytes ({plain.name})"
        else:
            yardstick, against = reported, "on its own model"
        check = Check(
            plan=plan.name,
            model=config.model.path,
            prompts=len(prompts),
            measured=measured,
            yardstick=yardstick,
            own_run=reported is not None,
            against=against,
            strangers=_strangers(reference, prompts),
            differences=wrong,
        )
        content = {"verdict": check.outcome, "text": check.text, "check": encode(Check, check)}
        write_json(kept, TRANSFER, content, origin)
        return check

    def read() -> tuple[Check, dict[str, str]]:
        found = read_json(kept, TRANSFER)
        return decode(kept, TRANSFER, Check, found.content.get("check")), found.origin

    return session.resolve(
        kept, command=f"mixdq apply --plan {path} -o", expected=origin, read=read, make=make, own=True
    )


def _measure(
    session: Session,
    plan: BitPlan,
    table: LayerTable,
    record: CalibrationRecord,
    prompts: Sequence[str],
    reference: "Trace",
) -> Closeness:
    """Return how near to the reference the model draws when it is simulated by a plan."""
    settings = session.config.conversion.model_dump(exclude={"backend"})
    simulated = simulated_plan(session.family.denoiser(session.pipe), table, plan.layers, record, **settings)
    try:
        drawn = _draw(session, prompts, f"check: {plan.name}", simulated)
    except NonFiniteError as error:
        raise NonFiniteError(
            f"plan {plan.name} on {session.config.model.path}: its pictures hold NaN or infinity", where=plan.name
        ) from error
    likeness = compare(reference.pictures, drawn.pictures, prompts, [METRICS["ssim"]])
    return Closeness(sqnr_db=sqnr(first_outputs(reference), first_outputs(drawn)), ssim=likeness["ssim"])


def _draw(
    session: Session, prompts: Sequence[str], what: str, quantized: AbstractContextManager[None] | None = None
) -> "Trace":
    with quantized or nullcontext():
        trace = record_calls(
            session.pipe,
            session.family,
            prompts,
            session.spec,
            batch_size=session.config.generation.batch_size,
            progress=lambda done, total, _: session.progress(done, total, what),
        )
    # As the numbers of a run, which are computed from PNG files.
    return replace(trace, pictures=(trace.pictures.clamp(0, 1) * 255).round() / 255)


def _strangers(reference: "Trace", prompts: Sequence[str]) -> float:
    """Return the mean SSIM of each picture and the next one's; 0, nothing in common, where there is one alone."""
    if len(prompts) == 1:
        return 0.0
    return compare(reference.pictures, reference.pictures.roll(1, 0), prompts, [METRICS["ssim"]])["ssim"]
