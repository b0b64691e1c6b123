"""The main job on the embedded model: plain quantization and MixDQ side by side, with pictures and numbers."""

import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mixdq.allocation import sweep
from mixdq.allocation.plans import uniform_plan
from mixdq.config import RunConfig, build_config
from mixdq.demo import CALIBRATION_PROMPTS, EVALUATION_PROMPTS, MODEL
from mixdq.errors import NoBackendError
from mixdq.runtime.select import AUTO, REFERENCE
from mixdq.store.artifact import atomic_write, digest_of_file
from mixdq.store.plan_file import dump_plan, read_plan, write_plan
from mixdq.types.evaluation import Evaluation
from mixdq.types.layers import Group, LayerTable
from mixdq.types.plan import BitPlan
from mixdq.types.progress import Progress, no_progress
from mixdq.types.scores import SensitivityTable
from mixdq.workflow import steps, variants
from mixdq.workflow.doctor import check_backend_works
from mixdq.workflow.reporting import report_on
from mixdq.workflow.session import Session, VariantPaths
from mixdq.workflow.settings import device_of, dtype_of

log = logging.getLogger(__name__)

SUMMARY_KEYS = (
    "name",
    "method",
    "weight_bits",
    "activation_bits",
    "weight_bytes",
    "ssim",
    "psnr_db",
    "sqnr_db",
    "clip_score",
    "seconds",
)

BOTH: dict[Group, tuple[str, ...]] = {"content": ("ssim", "sqnr"), "quality": ("sqnr",)}
SQNR_ALONE: dict[Group, str] = {"content": "sqnr", "quality": "sqnr"}
DECOUPLED: dict[Group, str] = {"content": "ssim", "quality": "sqnr"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a variant is made.

    Attributes:
        name: in tables; its folder is the name in lower case with dashes.
        method: "minmax" (one scale for all tokens and for joined inputs), "bos" (uniform bits, BOS rows and split
            joins), "mixdq-sqnr" (mixed bits, one metric for all layers) or "mixdq".
        weight_bits: the budget, mean bits.
    """

    name: str
    method: str
    weight_bits: float

    @property
    def slug(self) -> str:
        """The name of its folder."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower()).strip("-")


RECIPES = (
    Recipe(name="plain W8A8", method="minmax", weight_bits=8),
    Recipe(name="plain W4A8", method="minmax", weight_bits=4),
    Recipe(name="MixDQ W8A8", method="mixdq", weight_bits=8),
    Recipe(name="MixDQ W5A8", method="mixdq", weight_bits=5),
    Recipe(name="MixDQ W4A8", method="mixdq", weight_bits=4),
)

ABLATION = (
    Recipe(name="+ BOS W8A8", method="bos", weight_bits=8),
    Recipe(name="+ BOS W4A8", method="bos", weight_bits=4),
    Recipe(name="+ mixed on SQNR alone W8A8", method="mixdq-sqnr", weight_bits=8),
    Recipe(name="+ mixed on SQNR alone W4A8", method="mixdq-sqnr", weight_bits=4),
)


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo leaves: numbers (floating point first) and where the files are."""

    evaluations: list[Evaluation]
    summary: Path
    report: Path


def run_demo(
    folder: Path, *, ablation: bool = False, model: Path = MODEL, progress: Progress = no_progress
) -> DemoResult:
    """Do the whole job on the embedded model; what is up to date in `folder` is not done again."""
    session = Session.start(folder, demo_config(model), progress=progress)
    table = steps.inspect(session)
    record = steps.calibrate(session)
    plain_table = undivided(table)
    plain_record = steps.calibrate_as(session, plain_table, "minmax", folder / "calibration-plain.safetensors")
    scores = steps.measure(session, metric_of=BOTH if ablation else None)
    reference = variants.reference(session, table)
    evaluations, made = [reference.evaluation], []
    for recipe in RECIPES + (ABLATION if ablation else ()):
        paths = VariantPaths(folder / "variants" / recipe.slug)
        plain = recipe.method == "minmax"
        shown, known = (plain_table, plain_record) if plain else (table, record)
        plan = _plan(session, recipe, shown, scores, paths)
        variants.convert(session, paths, plan, shown, known)
        evaluations.append(
            variants.evaluate(session, paths, plan, shown, reference, name=recipe.name, method=recipe.method)
        )
        made.append(paths)
    summary = write_summary(folder / "summary.json", evaluations)
    return DemoResult(
        evaluations=evaluations, summary=summary, report=report_on(session, made, title="MixDQ on emoji-turbo")
    )


def demo_config(model: Path = MODEL) -> RunConfig:
    """Return the settings of the demo."""
    config = build_config(
        {
            "model": {"path": str(model)},
            "generation": {"batch_size": 8},
            "calibration": {"prompts": str(CALIBRATION_PROMPTS)},
            "sensitivity": {"num_prompts": 4},
            "selection": {"num_prompts": 16},
            "evaluation": {"prompts": str(EVALUATION_PROMPTS), "num_prompts": 32},
        }
    )
    conversion = config.conversion.model_copy(update={"backend": _backend(device_of(config), dtype_of(config))})
    return config.model_copy(update={"conversion": conversion})


def _backend(device: str, dtype: torch.dtype) -> str:
    """Return "auto", or, in words, the slow backend where no fast one works: the demo is to run anywhere."""
    try:
        check_backend_works(AUTO, device, dtype)
    except NoBackendError as error:
        log.warning("%s The demo goes on with the slow one: the same pictures, in more time.", error)
        return REFERENCE.name
    return AUTO


def undivided(table: LayerTable) -> LayerTable:
    """Return the table as plain quantization sees it: no first token set aside, no joined input split."""
    return replace(table, layers=tuple(replace(layer, bos=False, input_splits=()) for layer in table))


def write_summary(path: Path, evaluations: list[Evaluation]) -> Path:
    """Write the numbers as plain JSON, a list of entries; what is infinite (identical pictures) is null."""
    entries = [{key: _plain(getattr(one, key)) for key in SUMMARY_KEYS} for one in evaluations]
    atomic_write(path, (json.dumps(entries, indent=1) + "\n").encode())
    return path


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plan(
    session: Session, recipe: Recipe, table: LayerTable, scores: SensitivityTable, paths: VariantPaths
) -> BitPlan:
    if recipe.method in ("minmax", "bos"):
        plan = uniform_plan(table, int(recipe.weight_bits), 8, name=recipe.slug)
        if not paths.plan.exists() or dump_plan(read_plan(paths.plan)) != dump_plan(plan):
            write_plan(paths.plan, plan)
        return plan
    allocation = session.config.allocation.model_copy(update={"weight_bits": recipe.weight_bits})
    plans = sweep.allocate(
        table,
        scores,
        allocation.budget(layer.name for layer in table),
        objective="raw" if allocation.objective == "raw" else "linear",
        metric_of=SQNR_ALONE if recipe.method == "mixdq-sqnr" else DECOUPLED,
        max_plans=allocation.max_plans,
        symmetric=session.config.conversion.symmetric,
        name_prefix=recipe.slug,
        origin={"sensitivity": digest_of_file(session.paths.sensitivity)},
    )
    return steps.choose_among(session, plans, paths.plan)
