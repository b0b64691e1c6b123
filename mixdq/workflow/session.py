"""One run: its folder, its settings, its model, and which of its files are up to date.

Every file names what it was made from, as digests. A step reads its file where that still holds and makes it where not;
what it reads from other steps must be up to date, or be made too where everything was asked for.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mixdq.config import RunConfig, dump_config, load_config
from mixdq.errors import ArtifactError, ArtifactFormatError, ConfigError, StaleArtifactError
from mixdq.store.artifact import atomic_write, digest_of, digest_of_file, expect_origin
from mixdq.store.aside import aside
from mixdq.store.table_file import read_layers
from mixdq.types.layers import LayerTable
from mixdq.types.progress import Progress, no_progress

if TYPE_CHECKING:
    from mixdq.pipeline.family import ModelFamily, Pipeline
    from mixdq.pipeline.generate import GenerationSpec

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class VariantPaths:
    """The files of one quantized variant, all below `root`."""

    root: Path

    @property
    def plan(self) -> Path:
        """The bits of every layer."""
        return self.root / "plan.toml"

    @property
    def model(self) -> Path:
        """The quantized pipeline, a diffusers folder."""
        return self.root / "model"

    @property
    def choice(self) -> Path:
        """The plans that this one was chosen from, with their scores."""
        return self.root / "choice.json"

    @property
    def receipt(self) -> Path:
        """What conversion did."""
        return self.root / "receipt.json"

    @property
    def images(self) -> Path:
        """Its pictures."""
        return self.root / "images" / "quantized"

    @property
    def evaluation(self) -> Path:
        """Its numbers."""
        return self.root / "evaluation.json"


@dataclass(frozen=True)
class RunPaths(VariantPaths):
    """The files of a run; those of its one variant lie beside them."""

    @property
    def config(self) -> Path:
        """The settings, written by people."""
        return self.root / "config.toml"

    @property
    def layers(self) -> Path:
        """The layer table."""
        return self.root / "layers.json"

    @property
    def calibration(self) -> Path:
        """Ranges and BOS rows."""
        return self.root / "calibration.safetensors"

    @property
    def sensitivity(self) -> Path:
        """Scores, row by row."""
        return self.root / "sensitivity.csv"

    @property
    def plans(self) -> Path:
        """The folder of the sweep's plans."""
        return self.root / "plans"

    @property
    def transfer(self) -> Path:
        """How a plan that was found for another model fares on this one."""
        return self.root / "transfer.json"

    @property
    def reference(self) -> Path:
        """The floating-point model's pictures."""
        return self.root / "images" / "float"

    @property
    def benchmark(self) -> Path:
        """Seconds and memory."""
        return self.root / "benchmark.json"


class Session:
    """A run that is being worked on."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        *,
        pipe: "Pipeline | None" = None,
        everything: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        self.paths = RunPaths(folder)
        self.variant = VariantPaths(folder)
        self.config = config
        self.everything = everything
        self.progress = progress
        self.converted = False
        """Whether conversion has changed the pipeline in this session; one that was handed over stays so."""
        self._pipe = pipe
        self._told: set[Path] = set()

    @classmethod
    def open(cls, folder: Path, *, progress: Progress = no_progress) -> "Session":
        """Return the run in `folder`; ConfigError where there is none."""
        path = RunPaths(folder).config
        if not path.is_file():
            raise ConfigError(
                f"{folder}: no run in it, for it has no config.toml; `mixdq inspect MODEL -o {folder}` begins one"
            )
        return cls(folder, load_config(path), progress=progress)

    @classmethod
    def start(
        cls,
        folder: Path,
        config: RunConfig,
        *,
        pipe: "Pipeline | None" = None,
        everything: bool = True,
        progress: Progress = no_progress,
    ) -> "Session":
        """Return the run in `folder`, begun or gone on with; its config.toml becomes `config`.

        `everything` says that all steps are asked for, so that each is done as soon as another needs it.
        """
        session = cls(folder, config, pipe=pipe, everything=everything, progress=progress)
        session.change(config)
        return session

    def change(self, config: RunConfig) -> None:
        """Keep other settings from now on, and in config.toml."""
        if not self.paths.config.exists() or load_config(self.paths.config) != config:
            atomic_write(self.paths.config, dump_config(config).encode())
        self.config = config

    @property
    def pipe(self) -> "Pipeline":
        """The floating-point pipeline, loaded on first use."""
        return self._loaded[0]

    @property
    def family(self) -> "ModelFamily":
        """The family of the model."""
        return self._loaded[1]

    @property
    def in_memory(self) -> bool:
        """Whether the pipeline was handed over instead of named."""
        return self._pipe is not None

    def release(self) -> None:
        """Let the floating-point model go; the next use loads it again."""
        self.__dict__.pop("_loaded", None)

    @cached_property
    def _loaded(self) -> "tuple[Pipeline, ModelFamily]":
        from mixdq.pipeline.family import find_family
        from mixdq.pipeline.layers import weights_digest
        from mixdq.workflow.settings import load_model

        pipe = self._pipe if self._pipe is not None else load_model(self.config)
        family = find_family(pipe)
        if self.paths.layers.exists():
            table = read_layers(self.paths.layers)
            if table.model == self.config.model.path and table.digest != weights_digest(family.denoiser(pipe)):
                raise StaleArtifactError(
                    f"{table.model}: its weights are not those that this run began with. "
                    f"Choose another folder, or empty {self.paths.root}."
                )
        return pipe, family

    @cached_property
    def weights(self) -> dict[str, str]:
        """What tells that a model on disk is no longer what it was: "weights" -> digest of its weight files.

        Empty for a hub id and for a pipeline in memory, which are checked when they are used.
        """
        path = Path(self.config.model.path).expanduser()
        if self.in_memory or not path.exists():
            return {}
        if path.is_file():
            return {"weights": digest_of_file(path)}
        files = sorted(path.rglob("*.safetensors"))
        return {"weights": digest_of([[str(file.relative_to(path)), digest_of_file(file)] for file in files])}

    def layers_digest(self, table: LayerTable) -> str:
        """Return the digest of the model as later steps know it; where its folder lies does not count."""
        opened = self.config.model.model_dump(mode="json", exclude={"path"} if self.weights else None)
        return digest_of([opened, replace(table, model=""), self.weights])

    @property
    def spec(self) -> "GenerationSpec":
        """How pictures are made."""
        from mixdq.pipeline.generate import GenerationSpec

        return GenerationSpec(**self.config.generation.model_dump(exclude={"batch_size"}))

    def resolve(
        self,
        path: Path,
        *,
        command: str,
        expected: Mapping[str, str],
        read: Callable[[], tuple[T, Mapping[str, str]]],
        make: Callable[[], T],
        own: bool,
    ) -> T:
        """Return a step's value: read from `path` where that was made from `expected`, else made.

        `own` says that this very step was asked for. Otherwise, unless everything was, it is not made.

        Raises:
            ArtifactError: the file is missing, foreign or stale, and was not to be made.
        """
        command = f"{command} {self.paths.root}"
        if path.exists():
            try:
                with self.advising(path, command):
                    value, origin = read()
            except ArtifactFormatError:
                if not own or self.everything:
                    raise
                aside(path)
            else:
                if all(origin.get(name) == digest for name, digest in expected.items()):
                    self.say_up_to_date(path)
                    return value
                if not (own or self.everything):
                    expect_origin(path, origin, expected, command)
        elif not (own or self.everything):
            raise ArtifactError(f"{path}: there is no such file; `{command}` makes it")
        value = make()
        self._told.add(path)
        return value

    def say_up_to_date(self, path: Path) -> None:
        """Log that a file need not be made again: once, for every later step reads it again."""
        log.log(logging.DEBUG if path in self._told else logging.INFO, "%s is up to date", path.name)
        self._told.add(path)

    @contextmanager
    def advising(self, path: Path, command: str) -> Iterator[None]:
        """Complete what is said of a damaged file with what makes this very one: `store` knows the kind's verb only."""
        try:
            yield
        except ArtifactFormatError as error:
            remedy = f"`rm -r {path}` and then the same command" if self.everything else f"`{command}`"
            text, count = re.subn(r"`mixdq \w+`", lambda _: remedy, str(error))
            raise ArtifactFormatError(text if count else f"{text}. To have it made again: {remedy}.") from error


def prompts_digest(prompts: Sequence[str]) -> str:
    """Return the digest of prompts in their order."""
    return digest_of(list(prompts))
