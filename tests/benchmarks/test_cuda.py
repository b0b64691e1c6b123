"""What the benchmarks of a GPU do around their measuring; what itself needs a GPU runs where there is one."""

import gc
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks` is no part of the installed package."""
    monkeypatch.syspath_prepend(ROOT)


def module(name: str) -> Any:
    return import_module(f"benchmarks.cuda.{name}")


def test_what_is_replayed_keeps_its_tensors() -> None:
    x = torch.ones(3)
    replay, kept = module("timing").Replay(None, (lambda: x + 1,)), weakref.ref(x)
    del x
    gc.collect()
    assert kept() is not None
    del replay
    gc.collect()
    assert kept() is None


@needs_gpu
def test_a_replay_reads_its_tensors_when_others_were_made_since() -> None:
    timing = module("timing")
    results = []

    def one(i: int) -> Any:
        x, y = (torch.full((2**20,), float(i), device="cuda") for _ in range(2))
        results.append(y)
        return timing.graphed([lambda: torch.add(x, x, out=y)])

    replays = [one(i) for i in range(4)]
    gc.collect()
    torch.cuda.empty_cache()
    for i, (replay, y) in enumerate(zip(replays, results, strict=True)):
        y.zero_()
        replay()
        assert bool((y == 2 * i).all())
