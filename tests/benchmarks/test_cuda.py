"""What the benchmarks of a GPU do around their measuring; what itself needs a GPU runs where there is one."""

import argparse
import gc
import io
import json
import weakref
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`benchmarks` is no part of the installed package."""
    monkeypatch.syspath_prepend(ROOT)


def module(name: str) -> Any:
    return import_module(f"benchmarks.cuda.{name}")


def test_what_is_replayed_keeps_its_tensors() -> None:
    def call_of(x: torch.Tensor) -> Any:
        kept.append(weakref.ref(x))
        return lambda: x + 1

    kept: list[weakref.ref[torch.Tensor]] = []
    replay = module("timing").Replay(None, (call_of(torch.ones(3)),))
    gc.collect()
    assert kept[0]() is not None
    del replay
    gc.collect()
    assert kept[0]() is None


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


def test_what_is_known_is_written_after_each_candidate_and_a_failure_ends_none_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton = pytest.importorskip("triton.errors")
    unet = module("unet")
    row = unet.Row(name="", first_call=1.0, weight_bytes=1, held_bytes=1, peak_bytes=1)

    def measured(name: str, setting: Any, runs: int) -> Any:
        if name == "peer":
            raise triton.TritonError("out of resource")
        return (lambda: None), row

    def in_turns(things: Any, *, runs: int) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(unet, "measured", measured)
    monkeypatch.setattr(unet, "in_turns", in_turns)
    written: list[tuple[int, dict[str, str]]] = []
    names = ["one", "peer", "two"]
    rows, reasons = unet.compare(
        names, None, 1, lambda rows, reasons: written.append((len(rows), dict(reasons))), Console(quiet=True)
    )
    assert [(rows, list(reasons)) for rows, reasons in written] == [
        (1, []),
        (1, ["peer"]),
        (2, ["peer"]),
        (2, ["peer", "in turns"]),
    ]
    assert len(rows) == 2
    assert not any(row.in_turns for row in rows)
    assert reasons["peer"] == "TritonError: out of resource"


def test_all_are_compared_with_the_faster_graph_of_float16_in_time_and_in_memory_held() -> None:
    unet = module("unet")
    names = ("float16 eager", "float16 graph", "float16 channels last graph", "W4A8 graph")
    assert set(unet.BASELINES) < set(names) <= set(unet.CANDIDATES)
    rows = [
        unet.Row(name=name, first_call=1.0, weight_bytes=1, held_bytes=held * 2**20, peak_bytes=1, ms=ms)
        for name, ms, held in zip(names, (1.0, 8.0, 6.0, 3.0), (50, 50, 40, 10), strict=True)
    ]
    against = unet.baseline(rows)
    assert against.name == "float16 channels last graph"
    assert rows[-1].against(against) == {"times_as_fast": 2.0, "times_less_held": 4.0}
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(unet.table(rows, "SDXL"))
    said = console.export_text()
    assert "compared with float16 channels last graph" in said
    cells = said.partition("W4A8 graph")[2].splitlines()[0].split("│")
    assert [cells[unet.COLUMNS.index(name)].strip() for name in ("times as fast", "times less")] == ["2.00", "4.00"]
    assert unet.baseline(rows[:1]) is None
    console.print(unet.table(rows[:1], "SDXL"))
    assert "compared" not in console.export_text()


def test_times_of_layers_of_another_batch_or_side_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    rows = [{"layer": "linear 1 -> 2, 3", "us": {"W8A8": 2.0}}]
    path.write_text(json.dumps({"batch": 8, "side": 64, "rows": rows}), encoding="utf-8")
    layer_times = module("candidates").layer_times
    assert layer_times(path, 8, 64) == {"linear 1 -> 2, 3": {"W8A8": 2.0}}
    for batch, side in ((1, 64), (8, 128)):
        with pytest.raises(SystemExit, match=rf"of batch 8 and side 64, here they are {batch} and {side}"):
            layer_times(path, batch, side)


def test_the_fastest_plan_takes_the_fewest_bits_of_equals_and_needs_times_of_its_layers() -> None:
    candidates = module("candidates")
    times = {"float16": 3.0, "W8A8": 2.0, "W4A8": 2.0}
    assert str(candidates._fastest_bits(times)) == "W4A8"
    assert str(candidates._fastest_bits({"float16": 1.0, "W8A8": 2.0})) == "W16A16"
    setting = candidates.Setting(size="smoke", batch=1, side=16, times={"another": times})
    with pytest.raises(candidates.MissingError, match="of no layer"):
        candidates._fastest(setting)


def test_the_parts_of_the_check_are_the_whole_and_errors_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    check = module("check")
    assert check.part("2/8") == (2, 8)
    for text in ("0/8", "9/8", "2", "a/b"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected I/N"):
            check.part(text)
    shape = import_module("benchmarks.sdxl").Shape("linear", (64, 64), (1, 7, 64))
    asked = list(check.questions(shape, check.BITS))
    split = [one for bits in check.BITS for one in check.questions(shape, [bits])]
    assert len(asked) == len(split) > len(check.BITS)
    assert {str(case.bits) for case, _ in asked} == set(check.BITS)

    def broken(case: object) -> str:
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(check, "difference", broken)
    case, kind = asked[0]
    assert kind is None
    assert check.answer(case, kind) == f"{case}: RuntimeError: PassManager::run failed"
