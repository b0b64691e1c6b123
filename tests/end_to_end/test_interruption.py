"""Killed at any moment, a run goes on to the very result it would have had."""

import os
import random
import signal
import time
from pathlib import Path

SAME = ("layers.json", "calibration.safetensors", "sensitivity.csv", "plan.toml", "receipt.json")


def test_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path, models, begin, finished, launch) -> None:
    folder = tmp_path / "run"
    config = begin(folder, models["sdxl"])
    config.write_bytes((finished / "config.toml").read_bytes())
    moments = random.Random(20240530)
    killed = 0
    # A kill before a file is on disk is the worst one, and is the same on a slow machine; the others come by the clock.
    for sync in [1, 3, moments.randint(4, 60), None, moments.randint(2, 40), None, 12]:
        process = launch("run", config, die_at_sync=sync)
        if sync is None:
            time.sleep(moments.uniform(0.1, 2.5))
            os.kill(process.pid, signal.SIGKILL)
        code = process.wait()
        assert code in (-signal.SIGKILL, 0), process.stderr
        killed += code != 0
    process = launch("run", config)
    assert process.wait() == 0, process.stderr
    assert killed >= 4
    for name in SAME:
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    for picture in (finished / "images").rglob("*.png"):
        assert (folder / picture.relative_to(finished)).read_bytes() == picture.read_bytes()
    assert leftovers(folder) == []


def test_process_killed_while_it_saves_leaves_what_the_next_one_clears_away(run, launch) -> None:
    (run / "receipt.json").unlink()
    of_report = {"README.md", "pictures"}
    model = {path.name for path in (run / "model").iterdir()} - of_report
    (run / ".model.partial").mkdir()
    (run / ".model.partial" / "half").write_bytes(b"0" * 100)
    # The receipt is the first file that `apply` has synced: the model is in place by then.
    process = launch("apply", run, die_at_sync=1)
    assert process.wait() == -signal.SIGKILL
    assert not (run / "receipt.json").exists()
    assert {path.name for path in (run / "model").iterdir()} == model
    process = launch("apply", run)
    assert process.wait() == 0, process.stderr
    assert leftovers(run) == []


def test_ctrl_c_ends_with_130_and_keeps_what_is_done(run, finished, launch) -> None:
    table, whole = run / "sensitivity.csv", (finished / "sensitivity.csv").read_bytes()
    table.write_bytes(b"".join(whole.splitlines(keepends=True)[:10]))
    process = launch("sensitivity", run)
    deadline = time.monotonic() + 60
    while table.read_bytes().count(b"\n") < 14 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130, process.stderr
    assert "interrupted; the same command goes on from here" in process.stderr
    assert "Traceback" not in process.stderr
    kept = table.read_bytes()
    assert kept.count(b"\n") >= 14
    assert whole.startswith(kept)
    process = launch("sensitivity", run)
    assert process.wait() == 0, process.stderr
    assert table.read_bytes() == whole


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.startswith(".") or ".old" in path.name]
