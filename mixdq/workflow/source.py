"""The run that a plan comes from: its settings, its layers, and what it reports of the plan. No model, no torch."""

from collections.abc import Sequence
from pathlib import Path

from mixdq.config import RunConfig, load_config
from mixdq.store.artifact import digest_of_file
from mixdq.store.json_file import decode, read_json
from mixdq.store.table_file import read_layers
from mixdq.types.evaluation import Evaluation
from mixdq.types.layers import LayerTable
from mixdq.workflow.reporting import EVALUATION, MANIFEST, RECEIPT
from mixdq.workflow.session import RunPaths, VariantPaths
from mixdq.workflow.settings import generation_of
from mixdq.workflow.verdict import Closeness


def run_of(plan: Path) -> RunPaths | None:
    """Return the run that a plan lies in: its own folder, or one of the two above it, with a config.toml."""
    for folder in plan.absolute().parents[:3]:
        if (folder / "config.toml").is_file():
            return RunPaths(folder)
    return None


def settings_of(plan: Path) -> RunConfig | None:
    """Return the settings of the run that a plan lies in; None where it lies in none."""
    run = run_of(plan)
    return None if run is None else load_config(run.config)


def layers_of(plan: Path) -> LayerTable | None:
    """Return the layers that a plan was made for; None where its run is not at hand."""
    run = run_of(plan)
    return read_layers(run.layers) if run is not None and run.layers.exists() else None


def numbers_of(plan: Path, config: RunConfig, prompts: Sequence[str]) -> Closeness | None:
    """Return what the run of a plan reports of it, on `prompts` where its own begin with them, else on all of its own.

    None where there is no report of this very plan, or one of pictures that were not made as `config` says.

    Raises:
        ArtifactFormatError: a file of that run is damaged.
    """
    run, variant = run_of(plan), VariantPaths(plan.absolute().parent)
    if run is None:
        return None
    manifest = run.reference / "manifest.json"
    if not (variant.receipt.exists() and variant.evaluation.exists() and manifest.exists()):
        return None
    made, found = read_json(variant.receipt, RECEIPT), read_json(variant.evaluation, EVALUATION)
    if made.origin.get("plan") != digest_of_file(plan) or found.origin.get("receipt") != digest_of_file(
        variant.receipt
    ):
        return None
    theirs = load_config(run.config)
    if generation_of(theirs) != generation_of(config) or _arithmetic(theirs) != _arithmetic(config):
        return None
    evaluation = decode(variant.evaluation, EVALUATION, Evaluation, found.content)
    drawn = decode(manifest, MANIFEST, tuple[str, ...], read_json(manifest, MANIFEST).content.get("prompts"))
    noise, likeness = (evaluation.per_picture.get(name, ()) for name in ("sqnr", "ssim"))
    count = len(prompts)
    if drawn[:count] != tuple(prompts) or min(len(noise), len(likeness)) < count:
        return Closeness(sqnr_db=evaluation.sqnr_db, ssim=evaluation.ssim)
    # The same prompts and, picture by picture, the same noise: nothing differs but the model.
    return Closeness(sqnr_db=sum(noise[:count]) / count, ssim=sum(likeness[:count]) / count)


def _arithmetic(config: RunConfig) -> dict[str, object]:
    """Return the settings of conversion that change its numbers; backends give the same ones."""
    return config.conversion.model_dump(mode="json", exclude={"backend"})
