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

from mixdq.runtime.kernels.gpu import tuning

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


def test_a_layers_floor_is_what_it_multiplies_or_moves_at_the_rates_of_its_column() -> None:
    kernels, shape = module("kernels"), import_module("benchmarks.sdxl").Shape("linear", (640, 1280), (2, 77, 1280))
    # 2 * 154 * 640 * 1280 operations; a weight of 819,200 elements, 197,120 of the input and 98,560 of the output.
    most = {"int8": 1e16, "float16": 5e15, "bytes": 3e12}
    moved = {"float16": 1638400 + 394240 + 197120, "W8A8": 819200 + 394240 + 197120}
    moved |= {"W4A16": 409600 + 394240 + 197120, "W2A8": 204800 + 394240 + 197120}
    moved |= {"product": 819200 + 197120 + 197120, "cuBLAS int8": 819200 + 197120 + 394240}
    assert {name: kernels.bytes_of(shape, name) for name in moved} == moved
    for name, size in moved.items():
        assert kernels.floor(shape, name, most) == (pytest.approx(size / 3e12), "bytes")
    slow = {**most, "int8": 1e12, "float16": 5e11}
    assert kernels.floor(shape, "W2A8", slow) == (pytest.approx(252313600e-12), "int8")
    assert kernels.floor(shape, "W4A16", slow) == (pytest.approx(2 * 252313600e-12), "float16")
    # No card without FP8 has its rate.
    assert kernels.floor(shape, "FP8", slow).roof == "bytes"


def test_the_table_of_layers_and_its_file_have_shares_and_spreads(tmp_path: Path) -> None:
    kernels, shape = module("kernels"), import_module("benchmarks.sdxl").Shape("linear", (64, 64), (1, 1000, 64))
    timing = import_module("benchmarks.measuring").Timing
    most = {"int8": 8192e9, "float16": 4096e9, "bytes": 1e15}
    seconds = {"W8A8": timing(2e-6, 1e-6, 3e-6), "float16": timing(8e-6, 8e-6, 8e-6)}
    row = kernels.Row(shape=shape, calls=3, seconds=seconds, missing={"FP8": "none"})
    assert [kernels.cell(row, name, most) for name in ("W8A8", "float16", "FP8")] == ["2.0 50%", "8.0 25%", "-"]
    assert kernels.cell(row, "W8A8", {**most, "bytes": 130048e6}) == "2.0 100%m"
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(kernels.table([row, row], ["W8A8", "float16", "FP8"], most))
    assert "0.01 ms 50%" in console.export_text()
    arguments = argparse.Namespace(json=tmp_path / "out.json", batch=1, side=64)
    kernels.write(arguments, [row], most)
    (written,) = json.loads(arguments.json.read_text(encoding="utf-8"))["rows"]
    assert written["share"] == {"W8A8": 0.5, "float16": 0.25}
    assert written["roof"] == {"W8A8": "int8", "float16": "float16"}
    assert [written[name]["W8A8"] for name in ("us_fastest", "us", "us_slowest")] == pytest.approx([1, 2, 3])
    assert module("candidates").layer_times(arguments.json, 1, 64)[str(shape)]["W8A8"] == pytest.approx(2)


def test_what_fails_when_it_is_replayed_leaves_the_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = module("kernels")

    def in_turns(things: Any, *, runs: int) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access")

    def graphed(calls: Any) -> Any:
        if calls == ["W4A8"]:
            raise RuntimeError("CUDA error: misaligned address")
        return lambda: None

    monkeypatch.setattr(kernels, "sets_of", lambda size: 1)
    monkeypatch.setattr(kernels, "candidate", lambda shape, name, seed: name)
    monkeypatch.setattr(kernels, "graphed", graphed)
    monkeypatch.setattr(kernels, "in_turns", in_turns)
    row = kernels.measured(kernels.SMOKE[0], 1, ["W8A8", "W4A8", "float16"], 1)
    assert row.seconds == {}
    assert ["illegal" in row.missing[name] for name in ("W8A8", "W4A8", "float16")] == [True, False, True]
    monkeypatch.setattr(kernels, "in_turns", lambda things, *, runs: dict.fromkeys(things))
    row = kernels.measured(kernels.SMOKE[0], 1, ["W8A8", "W4A8", "float16"], 1)
    assert list(row.seconds) == ["W8A8", "float16"]
    assert "misaligned" in row.missing["W4A8"]


COMMANDS = {
    "benchmarks.kernels": ["--device", "cuda", "--smoke", "--runs", "1", "--tune"],
    "benchmarks.unet": [
        *("--device", "cuda", "--smoke", "--runs", "1", "--tune", "--only"),
        *("float16 graph", "float16 channels last graph", "W8A8 graph", "W4A8 graph", "W4A16 graph", "W8A8 eager"),
    ],
    "benchmarks.cuda.check": ["--smoke"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_without_a_gpu_every_command_ends_with_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"no CUDA device here .* nothing was measured"):
        import_module(name).main(COMMANDS[name])


@needs_gpu
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_runs_in_its_smallest_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Compiling is what takes long.
    monkeypatch.setattr(tuning, "MEASURED", 2)
    tuning._known.cache_clear()
    tuning.configuration.cache_clear()
    if name == "benchmarks.cuda.check":
        with pytest.raises(SystemExit) as ended:
            import_module(name).main(COMMANDS[name])
        assert ended.value.code == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(": 0 wrong")
        return
    import_module(name).main([*COMMANDS[name], "--json", str(out)])
    read = json.loads(out.read_text(encoding="utf-8"))
    assert read["machine"]["gpu"]
    assert (tmp_path / "mixdq" / tuning.FILE).exists()
    if name == "benchmarks.kernels":
        ours = {"float16", "W8A8", "W4A8", "W2A8", "W8A16", "W4A16", "W8A8 dynamic", "product"}
        assert all(ours <= row["us"].keys() for row in read["rows"])
        return
    assert read["not_run"] == {}
    assert [row["name"] for row in read["rows"]] == COMMANDS[name][COMMANDS[name].index("--only") + 1 :]
    assert read["against"] in module("unet").BASELINES
    # What runs eagerly has the same products, which nobody measures again.
    assert [row["name"] for row in read["rows"] if row["tuned"]] == ["W8A8 graph", "W4A8 graph", "W4A16 graph"]
    assert all(row["in_turns"] and row["times_as_fast"] > 0 and row["times_less_held"] > 0 for row in read["rows"])


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("terms", [64, 1280, 11520])
def test_sums_in_any_order_lie_within_their_roundings_and_what_is_missing_does_not(
    terms: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(terms)
    x, weight = (torch.randn(*size, generator=generator) for size in ((24, terms), (32, terms)))
    bias = torch.randn(32, generator=generator)
    products = x[:, None] * weight.to(dtype)
    exact = x.double() @ weight.to(dtype).double().T
    magnitude = x.double().abs() @ weight.to(dtype).double().abs().T + bias.double().abs()
    wanted, excess = exact + bias, module("check").float_excess
    one_by_one = torch.zeros(24, 32)
    for k in range(terms):
        one_by_one += products[..., k]
    for sums in (one_by_one, products.flip(-1).sum(-1), products.unflatten(-1, (4, -1)).sum(-1).sum(-1)):
        assert excess((sums + bias).to(dtype), wanted, magnitude, terms + 2) == ""
    for wrong in (exact.float(), wanted.float() * 1.01, wanted.float() - products[..., -terms // 64 :].sum(-1)):
        assert "off by" in excess(wrong.to(dtype), wanted, magnitude, terms + 2)
