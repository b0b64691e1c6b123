"""Every file of a run, spoiled: it is named, and the command that the error names makes it again, and it alone."""

import re
import shlex
from pathlib import Path

import pytest

VERB = {
    "layers.json": "calibrate",
    "calibration.safetensors": "sensitivity",
    "sensitivity.csv": "allocate",
    "plans/plan-01.toml": "choose",
    "plan.toml": "apply",
    "receipt.json": "evaluate",
    "evaluation.json": "report",
    "images/float/manifest.json": "report",
    "images/float/000.png": "report",
    "images/quantized/001.png": "report",
}
"""A file -> a verb that reads it."""

ADVISES = {
    "layers.json": "inspect",
    "calibration.safetensors": "calibrate",
    "sensitivity.csv": "sensitivity",
    "plans/plan-01.toml": "allocate",
    "plan.toml": "choose",
    "receipt.json": "apply",
    "evaluation.json": "evaluate",
    "images/float/manifest.json": "evaluate",
    "images/float/000.png": "evaluate",
    "images/quantized/001.png": "evaluate",
}

WITH_SCHEMA = [name for name in VERB if not name.endswith(".png")]


def truncated(data: bytes) -> bytes:
    # TOML and CSV cut between two lines are shorter files, not damaged ones: cut within one, near its beginning.
    return data[: data.rfind(b"\n", 0, len(data) // 2) + 4]


def foreign(_: bytes) -> bytes:
    return b"PK\x03\x04 not ours"


def newer(data: bytes) -> bytes:
    changed = re.sub(rb"(mixdq\.[a-z]+)/\d", rb"\1/9", data, count=1)
    assert changed != data
    return changed


def complaint(done, path: Path) -> str:
    assert done.exit_code == 1, (done.exit_code, done.stderr)
    assert "Traceback" not in done.stderr
    assert str(path) in done.stderr
    return done.stderr[done.stderr.index("error: ") :]


def advised(said: str) -> list[str]:
    commands = re.findall(r"`(mixdq [^`]+)`", said)
    assert commands, said
    return shlex.split(commands[-1])[1:]


@pytest.mark.parametrize("damage", [truncated, newer], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", WITH_SCHEMA)
def test_damaged_file_is_named_with_the_command_that_makes_it(run, mixdq, name, damage) -> None:
    path = run / name
    data = damage(path.read_bytes())
    path.write_bytes(data)
    said = complaint(mixdq(VERB[name], run), path)
    assert advised(said)[0] == ADVISES[name]
    assert path.read_bytes() == data
    assert ("newer MixDQ" in said) == (damage is newer)


@pytest.mark.parametrize("name", VERB)
def test_advised_command_makes_the_file_again_and_the_work_goes_on(run, finished, mixdq, name) -> None:
    path = run / name
    path.write_bytes(foreign(b""))
    said = complaint(mixdq(VERB[name], run), path)
    done = mixdq(*advised(said))
    assert done.exit_code == 0, done.stderr
    if name not in ("evaluation.json", "images/float/manifest.json"):  # They hold seconds.
        assert path.read_bytes() == (finished / name).read_bytes()
    done = mixdq(VERB[name], run)
    assert done.exit_code == 0, done.stderr
    if "/" not in name:
        # What could not be gone on with is kept.
        assert [kept for kept in run.glob("*.old1*") if kept.read_bytes() == foreign(b"")]


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("name", ["sensitivity.csv", "plan.toml", "images/float/000.png"])
def test_all_steps_refuse_a_foreign_file_and_go_on_once_it_is_gone(run, mixdq, name) -> None:
    path = run / name
    path.write_bytes(foreign(b""))
    said = complaint(mixdq("run", run / "config.toml"), path)
    gone = re.findall(r"`rm -r ([^`]+)`", said)
    assert gone, said
    Path(gone[-1]).unlink()
    done = mixdq("run", run / "config.toml")
    assert done.exit_code == 0, done.stderr


def test_damaged_choice_costs_the_report_its_plot_only(run, mixdq) -> None:
    path = run / "choice.json"
    path.write_bytes(foreign(b""))
    assert f"`rm {path}`" in complaint(mixdq("report", run), path)
    path.unlink()
    assert mixdq("report", run).exit_code == 0


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("name", ["model/model_index.json", "images/quantized/000.png"])
def test_missing_result_is_made_again_though_its_record_is_there(run, finished, mixdq, name) -> None:
    (run / name).unlink()
    done = mixdq("run", run / "config.toml")
    assert done.exit_code == 0, done.stderr
    assert (run / name).read_bytes() == (finished / name).read_bytes()
