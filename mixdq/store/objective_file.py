"""objective.json: the measured errors of whole plans, written after each, and the error model fitted to all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mixdq.store.artifact import Schema, bad_format
from mixdq.store.json_file import decode, encode, read_json, write_json
from mixdq.types.scores import ErrorModel

OBJECTIVE = Schema("objective", "mixdq fit")


@dataclass(frozen=True, kw_only=True)
class ObjectiveFile:
    """What is on file: plan -> 1 - SSIM of its pictures, in order; the model once all are known; and the origin."""

    errors: Mapping[str, float]
    model: ErrorModel | None = None
    origin: Mapping[str, str] = field(default_factory=dict)


def write_objective(path: Path, objective: ObjectiveFile) -> None:
    """Write the file, atomically."""
    content = {
        "errors": [list(pair) for pair in objective.errors.items()],
        **({} if objective.model is None else {"model": encode(ErrorModel, objective.model)}),
    }
    write_json(path, OBJECTIVE, content, objective.origin)


def read_objective(path: Path) -> ObjectiveFile:
    """Return the file's content; ArtifactError where it is missing, foreign, damaged or newer."""
    artifact = read_json(path, OBJECTIVE)
    unknown = sorted(artifact.content.keys() - {"errors", "model"})
    if unknown:
        raise bad_format(path, OBJECTIVE, f"unknown key {unknown[0]!r}")
    model = artifact.content.get("model")
    return ObjectiveFile(
        errors=dict(decode(path, OBJECTIVE, list[tuple[str, float]], artifact.content.get("errors"))),
        model=None if model is None else decode(path, OBJECTIVE, ErrorModel, model),
        origin=artifact.origin,
    )
