"""A process that does tasks for another one: it reads the model itself, and makes sure that it is the same.

What comes out must be what the other process would have found, to the last bit; a worker that could give anything
else refuses. Nothing here knows of Ray.
"""

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

import mixdq
from mixdq.errors import ClusterError, MixDQError
from mixdq.pipeline.family import find_family
from mixdq.pipeline.layers import weights_digest
from mixdq.pipeline.load import load_pipeline
from mixdq.pipeline.trace import regenerate, replay
from mixdq.sensitivity.desk import Desk
from mixdq.sensitivity.scorer import TrialScorer
from mixdq.sensitivity.trials import Trial

A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a process reads the model from, and how: the arguments of `mixdq.pipeline.load.load_pipeline`.

    `path` is absolute where it is one; every machine has the same model under it.
    """

    path: str
    dtype: torch.dtype
    device: str
    variant: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a worker needs to become like the process that it works for.

    Attributes:
        source: where it reads the model.
        digest: of the denoiser's weights that it must find there.
        threads: of torch; sums come out in another order with another number.
        settings: the fields of a `TrialScorer` but for the model itself.
        sketched, checkpointing: as of a `Desk`.
    """

    source: ModelSource
    digest: str
    threads: int
    settings: Mapping[str, Any]
    sketched: Mapping[str, Sequence[Trial]]
    checkpointing: bool

    @classmethod
    def of(cls, desk: Desk, source: ModelSource) -> "Recipe":
        """Return the recipe for workers that are to do what is done at `desk`, with the model of `source`."""
        scorer = desk.scorer
        return cls(
            source=source,
            digest=weights_digest(scorer.denoiser),
            threads=torch.get_num_threads(),
            settings={
                field.name: getattr(scorer, field.name)
                for field in fields(scorer)
                if field.name not in ("pipe", "denoiser")
            },
            sketched=desk.sketched,
            checkpointing=desk.checkpointing,
        )


class Worker:
    """Does tasks, once it has been told how."""

    def check(self, expected: Mapping[str, str]) -> None:
        """Return if what runs here is what `code` says of the other process; ClusterError names what is not.

        Comes before anything of ours is sent, which another version might take for something else.
        """
        found = code()
        wrong = [
            f"{name} is {found.get(name)}, not {value}" for name, value in expected.items() if found.get(name) != value
        ]
        if wrong:
            raise ClusterError(
                f"{_here()}: {'; '.join(wrong)}, so its scores could not be told from wrong ones. "
                "Install the same on all machines of the cluster."
            )

    def open(self, recipe: Recipe, checked: None = None) -> None:
        """Read the model; ClusterError where it is not there, is another, or gives other numbers.

        `checked` is what `check` returned: asked for, so that it comes first.
        """
        torch.set_num_threads(recipe.threads)
        source = recipe.source
        try:
            pipe = load_pipeline(source.path, dtype=source.dtype, device=source.device, variant=source.variant)
            denoiser = find_family(pipe).denoiser(pipe)
        except (MixDQError, OSError) as error:
            raise ClusterError(
                f"{_here()}: cannot open the model ({error}). "
                "Every machine of the cluster reads it under the same path or hub id."
            ) from error
        digest = weights_digest(denoiser)
        if digest != recipe.digest:
            raise ClusterError(
                f"{_here()}: {source.path} holds other weights there (digest {digest[:12]}, not {recipe.digest[:12]}). "
                "Copy the model anew to that machine, and run the same command again."
            )
        scorer = TrialScorer(pipe=pipe, denoiser=denoiser, **recipe.settings)
        if not _repeats(scorer):
            raise ClusterError(
                f"{_here()}: the unchanged model gives other numbers there than here, so its scores would not be the "
                "same. The machines need the same kind of processor or GPU, the same libraries, and the same model "
                "with its text encoders and autoencoder; leave this one out."
            )
        self._desk = Desk(scorer, recipe.sketched, checkpointing=recipe.checkpointing)

    def do(self, what: Callable[[Desk, A], T], task: A) -> T:
        """Return what a method of `Desk` returns for the task, or raise what it raises."""
        return what(self._desk, task)


def code() -> dict[str, str]:
    """Return what decides which numbers come out, and has to be the same in all processes: name -> version."""
    folder = Path(mixdq.__file__).parent
    sources = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        sources.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return {
        "mixdq": importlib.metadata.version("mixdq"),
        "the digest of mixdq's code": sources.hexdigest()[:12],
        "torch": torch.__version__,
    }


def _here() -> str:
    return f"a worker on {platform.node()}"


def _repeats(scorer: TrialScorer) -> bool:
    """Say whether the model gives the recorded run again, bit for bit."""
    trace = scorer.trace
    return all(torch.equal(replay(scorer.denoiser, call), call.output) for call in trace.calls) and torch.equal(
        regenerate(scorer.pipe, trace), trace.pictures
    )
