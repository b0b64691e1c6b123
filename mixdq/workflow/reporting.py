"""Everything that a run has on file, gathered for the report. Needs no model and no torch."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from mixdq.errors import ArtifactError
from mixdq.integrations.model_card import write_model_card
from mixdq.report.facts import ReportFacts, Variant
from mixdq.report.render import render
from mixdq.store.artifact import Schema, digest_of_file
from mixdq.store.json_file import decode, encode, read_json
from mixdq.store.plan_file import read_plan
from mixdq.store.table_file import read_layers, read_sensitivity
from mixdq.types.evaluation import Evaluation
from mixdq.types.receipt import Receipt
from mixdq.workflow.fitting import TRANSFERRED
from mixdq.workflow.session import Session, VariantPaths

CHOICE = Schema("choice", "mixdq choose")
RECEIPT = Schema("receipt", "mixdq apply")
EVALUATION = Schema("evaluation", "mixdq evaluate")
MANIFEST = Schema("manifest", "mixdq evaluate")
TRANSFER = Schema("transfer", "mixdq apply")

_LIBRARIES = ("torch", "diffusers", "transformers", "scipy")


def report(session: Session) -> Path:
    """Return the path of report.html, written from the files of a run with its one variant."""
    return report_on(session, [session.variant], title=f"{session.config.model.path}, quantized")


def report_on(session: Session, variants: list[VariantPaths], *, title: str) -> Path:
    """Return the path of report.html, written from the files of a run and of any number of variants.

    Each saved model gets its card, README.md, on the way.

    Raises:
        ArtifactError: a file is missing or damaged; the text names the command that makes it.
    """
    paths = session.paths
    manifest, root = paths.reference / "manifest.json", paths.root
    with session.advising(manifest, f"mixdq evaluate {root}"):
        content = read_json(manifest, MANIFEST).content
        prompts = decode(manifest, MANIFEST, tuple[str, ...], content.get("prompts"))
        floating = decode(manifest, MANIFEST, Evaluation, content.get("evaluation"))
    shown = [Variant(evaluation=floating, pictures=paths.reference)]
    receipts, candidates = [], {}
    for variant in variants:
        with session.advising(variant.evaluation, f"mixdq evaluate {root}"):
            numbers = read_json(variant.evaluation, EVALUATION).content
            evaluation = decode(variant.evaluation, EVALUATION, Evaluation, numbers)
        with session.advising(variant.plan, f"mixdq choose {root}"):
            plan = read_plan(variant.plan)
        shown.append(Variant(evaluation=evaluation, pictures=variant.images, plan=plan))
        with session.advising(variant.receipt, f"mixdq apply {root}"):
            receipts.append(decode(variant.receipt, RECEIPT, Receipt, read_json(variant.receipt, RECEIPT).content))
        if variant.choice.exists():
            # The report does without it.
            with session.advising(variant.choice, f"rm {variant.choice}"):
                scores = read_json(variant.choice, CHOICE).content.get("scores")
                candidates[plan.name] = decode(variant.choice, CHOICE, tuple[tuple[str, float], ...], scores)
        _check_pictures(session, variant.images, len(prompts))
    _check_pictures(session, paths.reference, len(prompts))
    with session.advising(paths.layers, f"mixdq inspect {session.config.model.path} -o {root}"):
        layers = read_layers(paths.layers)
    with session.advising(paths.sensitivity, f"mixdq sensitivity {root}"):
        sensitivity = read_sensitivity(paths.sensitivity) if paths.sensitivity.exists() else None
    facts = ReportFacts(
        title=title,
        model=session.config.model.path,
        environment=environment(),
        settings=_settings(session),
        prompts=prompts,
        variants=tuple(shown),
        layers=layers,
        sensitivity=sensitivity,
        receipts=tuple(receipts),
        candidates=candidates,
        warnings=_warnings(session),
    )
    with session.advising(root / "images", f"mixdq evaluate {root}"):
        for saved, told in zip(variants, facts.variants[1:], strict=True):
            if saved.model.is_dir():
                write_model_card(facts, saved.model, variant=told.name)
        return render(facts, root)


def picture_path(folder: Path, index: int) -> Path:
    """Return the file of picture `index`."""
    return folder / f"{index:03d}.png"


def encode_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain values that `decode` takes back."""
    # What is None is left out by `encode`, and this field, of a model without a CLIP model, has no default.
    return {**encode(Evaluation, evaluation), "clip_score": evaluation.clip_score}


def environment() -> dict[str, str]:
    """Return facts of the machine and the libraries, without importing any of them."""
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError as error:
            raise ArtifactError(f"{library} is not installed; install mixdq again") from error
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **versions,
    }


def _check_pictures(session: Session, folder: Path, count: int) -> None:
    for path in (picture_path(folder, index) for index in range(count)):
        if not path.exists():
            raise ArtifactError(f"{path}: there is no such file; `mixdq evaluate {session.paths.root}` makes it")


def _settings(session: Session) -> dict[str, str]:
    config = session.config
    return {
        "seed": str(config.generation.seed),
        "steps": str(config.generation.steps),
        "guidance scale": f"{config.generation.guidance_scale:g}",
        "calibration": f"{config.calibration.num_prompts} prompts, {config.calibration.estimator}",
        "sensitivity": f"{config.sensitivity.num_prompts} prompts, SSIM window {config.sensitivity.ssim_window}",
        "objective": config.allocation.objective,
        "protected activations": f"{config.allocation.protect:.1%} of each group",
        "weights": f"{'symmetric' if config.conversion.symmetric else 'asymmetric'}, {config.conversion.rounding}",
        "activations": config.conversion.activations,
        "backend": config.conversion.backend,
    }


def _warnings(session: Session) -> tuple[str, ...]:
    found = []
    if session.config.conversion.backend == "reference":
        found.append(
            "These pictures were drawn by the reference backend: exact integers in plain torch. It is the definition "
            "of what is right and it is slow; its seconds say nothing of what integer kernels reach."
        )
    plan, transfer = session.paths.plan, session.paths.transfer
    if plan.exists() and transfer.exists() and read_plan(plan).origin.get(TRANSFERRED) == digest_of_file(transfer):
        text = decode(transfer, TRANSFER, str, read_json(transfer, TRANSFER).content.get("text"))
        found.append(f"The bits were found for another model, and checked on this one: {text}.")
    return tuple(found)
