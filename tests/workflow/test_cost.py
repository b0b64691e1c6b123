import subprocess

import pytest
import torch

from mixdq.errors import ArtifactError, ConfigError
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.workflow import cost
from mixdq.workflow.session import Session


@pytest.fixture
def session(tmp_path, configure) -> Session:
    return Session(tmp_path, configure())


def test_cost_is_measured_in_a_process_of_its_own(session) -> None:
    found = cost.float_cost(session, repeats=1)
    assert found.seconds > 0
    assert found.first_seconds > 0
    assert found.load_seconds > 0
    # torch alone takes this much; the greatest of this process, which drew before, is not what is meant.
    assert found.peak_memory is None or found.peak_memory > 50 * 2**20


def test_failure_of_that_process_is_told_with_its_reason(session, tmp_path, monkeypatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback ...\nMemoryError: too large\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ArtifactError, match=r"(?s)nowhere: cannot be measured.*MemoryError: too large"):
        cost.folder_cost(session, tmp_path / "nowhere", repeats=1)


def test_pipeline_in_memory_is_timed_where_it_is(tmp_path, configure) -> None:
    found = cost.float_cost(Session(tmp_path, configure(), pipe=tiny_sdxl_pipeline()), repeats=1)
    assert found.seconds > 0
    assert found.peak_memory is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_graphs_without_a_gpu_are_refused_and_leave_the_pipeline_as_it_was(tmp_path, configure) -> None:
    pipe = tiny_sdxl_pipeline()
    with pytest.raises(ConfigError, match="PyTorch sees none here"):
        cost.float_cost(Session(tmp_path, configure(), pipe=pipe), repeats=1, graphs=True)
    assert "forward" not in vars(pipe.unet)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_graphs_are_taken_off_when_the_cost_is_known(tmp_path, configure) -> None:
    pipe = tiny_sdxl_pipeline().to("cuda")
    assert cost.float_cost(Session(tmp_path, configure(), pipe=pipe), repeats=1, graphs=True).seconds > 0
    assert "forward" not in vars(pipe.unet)
