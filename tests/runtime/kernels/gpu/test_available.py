import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixdq.runtime.kernels.gpu import available

SAY = "from mixdq.runtime.kernels.gpu import available; print(available.trouble())"


def trouble(before: str = "", interpret: str = "1") -> str:
    """What a fresh process says."""
    code = f"import os, sys; os.environ['TRITON_INTERPRET'] = '{interpret}'; {before}; {SAY}"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available() or available.interpreted():
        pytest.skip("there is a GPU, or kernels are interpreted")
    assert "no NVIDIA GPU" in str(available.trouble())


def test_without_triton_it_says_what_to_install() -> None:
    said = trouble("sys.modules['triton'] = None")
    assert said.startswith("Triton cannot be imported")
    assert said.endswith("pip install triton")


def test_a_broken_triton_is_told_from_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("raise OSError('libcuda is too old')")
    said = trouble(f"sys.path.insert(0, {str(tmp_path)!r})")
    assert said == "Triton does not work here: OSError: libcuda is too old"


def test_an_old_card_is_named_with_what_it_would_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(available.INTERPRETER, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    available._lasting_trouble.cache_clear()
    try:
        said = available.trouble()
    finally:
        available._lasting_trouble.cache_clear()
    assert said == "Tesla T4 has compute capability 7.5; the kernels need 8.0 (Ampere) or newer"


def test_an_answer_is_kept_unless_memory_was_out() -> None:
    changing = """
import torch
def works(_):
    error = errors.pop(0)
    if error:
        raise error
    return True
available._works = works
errors = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("Triton Error [CUDA]: out of memory"), None]
print([available.trouble() is None for _ in range(4)])
available._lasting_trouble.cache_clear()
errors = [AssertionError("no libcuda")]
print([available.trouble()[-10:] for _ in range(2)])
"""
    before = f"from mixdq.runtime.kernels.gpu import available; exec({changing!r})"
    kept, lasting, *_ = trouble(before).splitlines()
    assert kept == "[False, False, True, True]"
    assert lasting == "['no libcuda', 'no libcuda']"


def test_interpreted_there_is_a_card_of_our_own() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert available.card(torch.device("cpu")).multiprocessors > 0
