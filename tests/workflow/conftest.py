"""A tiny model folder, small settings and one finished run."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixdq.config import RunConfig, build_config
from mixdq.evaluation import pace, timing
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.workflow import cost, steps
from mixdq.workflow.session import Session


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_sdxl_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def configure(model) -> Callable[..., RunConfig]:
    """The function that gives small settings, with sections replaced."""

    def make(**sections: dict[str, Any]) -> RunConfig:
        base: dict[str, dict[str, Any]] = {
            "model": {"path": str(model)},
            "calibration": {"num_prompts": 2},
            "sensitivity": {"num_prompts": 1, "tolerance": 0.9},
            "allocation": {
                "weight_bits": 5.0,
                "weight_choices": {"content": (4, 8), "quality": (4, 8)},
                "activation_choices": {"content": (8,), "quality": (8,)},
                "protect": 0.0,
                "max_plans": 2,
            },
            "selection": {"num_prompts": 1},
            "evaluation": {"num_prompts": 2},
        }
        return build_config({name: {**base.get(name, {}), **sections.get(name, {})} for name in {**base, **sections}})

    return make


@pytest.fixture(scope="session")
def _finished(tmp_path_factory: pytest.TempPathFactory, configure) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_in_own_process", cost._measure)
        steps.run(Session.start(folder, configure()))
    return folder


@pytest.fixture
def measured_here(monkeypatch) -> Iterator[None]:
    """Have costs measured in this process, for a process of its own takes seconds to start."""
    monkeypatch.setattr(cost, "_in_own_process", cost._measure)
    return


@pytest.fixture
def hurried(monkeypatch) -> None:
    """Time for less long, where times are not the point."""
    monkeypatch.setattr(pace, "LEAST_SECONDS", 0.001)
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)


@pytest.fixture
def unreported(monkeypatch) -> None:
    """Leave the report out of all steps, where it is not the point: its plots take as long as all the rest."""
    monkeypatch.setattr(steps, "report", lambda session: session.paths.root / "report.html")


@pytest.fixture
def run(_finished, tmp_path, measured_here, hurried) -> Session:
    """A finished run, of which no step is asked for."""
    return Session.open(Path(shutil.copytree(_finished, tmp_path / "run")))
