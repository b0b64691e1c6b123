"""What the files of a run must have been made from: name of an input -> its digest. Needs no model and no torch."""

from mixdq.config import RunConfig
from mixdq.store.artifact import digest_of, digest_of_file
from mixdq.store.sketch_file import Columns
from mixdq.types.layers import LayerTable
from mixdq.types.scores import SensitivityTable
from mixdq.workflow.session import Session, prompts_digest
from mixdq.workflow.settings import generation_of, selection_prompts, sensitivity_prompts


def sensitivity_origin(session: Session, method: str | None = None) -> dict[str, str]:
    """Return what the sensitivity table of a run must have been made from, by its method or another one.

    The calibration's digest is absent where there is no calibration: the two tables are all that allocation needs.
    """
    config = session.config
    sketched = config.sensitivity
    method = method or sketched.method
    return {
        **_measured_on(session),
        "settings": digest_of(
            [
                *_measured_as(config),
                # Tables that were measured before there was another way stay good.
                *([] if method == "exact" else [method, sketched.tolerance]),
                *([sketched.exact_share] if method == "hybrid" else []),
            ]
        ),
    }


def is_exact(session: Session, scores: SensitivityTable) -> bool:
    """Return whether a table was measured exactly from what the run has now: as good as what any method would find."""
    expected = sensitivity_origin(session, method="exact")
    return all(scores.origin.get(name) == digest for name, digest in expected.items())


def rows_origin(session: Session) -> dict[str, str]:
    """Return what the rows that were measured exactly depend on, whatever else their table holds: to the same bits."""
    return {**_measured_on(session), "rows": _to_the_bits(session.config)}


def sketch_origin(session: Session, columns: Columns) -> dict[str, str]:
    """Return what the vectors of a run's sketch must have been made from; how many are wanted does not count."""
    return {**_measured_on(session), "settings": _to_the_bits(session.config), "columns": digest_of(columns)}


def objective_origin(session: Session) -> dict[str, str]:
    """Return what the error model of a run must have been fitted on."""
    config = session.config
    return {
        "sensitivity": digest_of_file(session.paths.sensitivity),
        "fit": digest_of(
            [
                config.allocation.fit_plans,
                config.allocation.model_dump(mode="json", include={"weight_choices", "activation_choices", "keep"}),
                prompts_digest(selection_prompts(config)),
                generation_of(config),
                config.conversion.model_dump(mode="json", exclude={"backend"}),
            ]
        ),
    }


def latency_origin(session: Session, table: LayerTable) -> dict[str, str]:
    """Return what the latency table of a run must have been made from."""
    config = session.config
    return {
        "layers": session.layers_digest(table),
        "settings": digest_of(
            [
                config.allocation.model_dump(mode="json", include={"weight_choices", "activation_choices", "keep"}),
                config.conversion.model_dump(mode="json"),
                generation_of(config),
            ]
        ),
    }


def _measured_on(session: Session) -> dict[str, str]:
    calibration = session.paths.calibration
    return {
        **({"calibration": digest_of_file(calibration)} if calibration.exists() else {}),
        "prompts": prompts_digest(sensitivity_prompts(session.config)),
    }


def _measured_as(config: RunConfig) -> list[object]:
    return [
        config.sensitivity.ssim_window,
        config.conversion.symmetric,
        config.conversion.rounding,
        config.conversion.activations,
        generation_of(config),
    ]


def _to_the_bits(config: RunConfig) -> str:
    return digest_of([*_measured_as(config), config.generation.batch_size])
