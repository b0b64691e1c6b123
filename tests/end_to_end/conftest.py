"""Tiny model folders, the command `mixdq` in this process, and one finished run to spoil."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mixdq.cli.main import app
from mixdq.testing import tiny_sd_pipeline, tiny_sdxl_pipeline
from mixdq.workflow import cost, steps

Command = Callable[..., Result]

PROMPTS = ("a red dog", "two cats", "a green tree", "a blue house")

SETTINGS = """
[model]
path = "{model}"

[calibration]
prompts = "{prompts}"
num_prompts = 2

[sensitivity]
num_prompts = 1
tolerance = 0.9

[allocation]
weight_bits = 5
weight_choices = {{content = [4, 8], quality = [4, 8]}}
activation_choices = {{content = [8], quality = [8]}}
protect = 0.0
max_plans = 3

[selection]
num_prompts = 1

[evaluation]
num_prompts = 2
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The family's name -> a model folder."""
    folder = tmp_path_factory.mktemp("models")
    tiny_sdxl_pipeline().save_pretrained(folder / "sdxl")
    tiny_sd_pipeline().save_pretrained(folder / "sd")
    return {"sdxl": folder / "sdxl", "sd": folder / "sd"}


@pytest.fixture(scope="session")
def mixdq() -> Command:
    """The command with its words, run here: exit code, standard output and standard error come back."""

    def call(*words: object) -> Result:
        # A process of its own for every timing takes seconds to start; tests/workflow/test_cost.py starts one.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cost, "_in_own_process", cost._measure)
            return CliRunner().invoke(app, [str(word) for word in words])

    return call


@pytest.fixture(scope="module", autouse=True)
def _measured_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_in_own_process", cost._measure)
        yield


@pytest.fixture
def unreported(monkeypatch) -> None:
    """Leave the report out of all steps, where it is not the point: its plots take as long as all the rest."""
    monkeypatch.setattr(steps, "report", lambda session: session.paths.root / "report.html")


@pytest.fixture(scope="session")
def begin() -> Callable[..., Path]:
    """The function that writes a small config.toml into a folder, and returns its path."""

    def write(folder: Path, model: Path) -> Path:
        folder.mkdir(parents=True)
        prompts = folder / "prompts.txt"
        prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
        config = folder / "config.toml"
        config.write_text(SETTINGS.format(model=model, prompts=prompts), encoding="utf-8")
        return config

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, models, mixdq, begin) -> Path:
    """A run that is done; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    config = begin(folder, models["sdxl"])
    done = mixdq("run", config)
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


class Launched:
    """A command that runs in a process of its own."""

    def __init__(self, replies: IO[str], stderr: Path) -> None:
        self.pid = int(replies.readline())
        self._replies, self._stderr = replies, stderr

    def wait(self) -> int:
        """Return the exit code, negative for a signal."""
        return int(self._replies.readline())

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._stderr.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Launched]]:
    """The function that starts a command in a process of its own; one at a time."""
    stderr = tmp_path_factory.mktemp("launched") / "stderr"
    launcher = Path(__file__).with_name("launcher.py")
    with subprocess.Popen(
        [sys.executable, str(launcher)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def start(*words: object, die_at_sync: int | None = None, file_limit: int | None = None) -> Launched:
            job = {"words": [str(word) for word in words], "stderr": str(stderr)}
            process.stdin.write(json.dumps({**job, "die_at_sync": die_at_sync, "file_limit": file_limit}) + "\n")
            process.stdin.flush()
            return Launched(process.stdout, stderr)

        yield start
        process.stdin.close()
