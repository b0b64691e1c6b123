"""A disk that takes no more: one line, nothing half-written, and the same command goes on.

The system itself refuses to let a file grow beyond a limit, in the middle of a write, as it does on a full disk.
"""

import pytest

CASES = {
    "layers.json": ("inspect", "layers.json", 4096),
    "sensitivity.csv, row by row": ("sensitivity", "sensitivity.csv", 6000),
    "the model": ("apply", "receipt.json", 20_000),
    "report.html": ("report", "report.html", 20_000),
}


@pytest.mark.parametrize("case", CASES)
def test_full_disk_is_one_line_and_the_same_command_goes_on(run, models, launch, finished, case) -> None:
    verb, name, limit = CASES[case]
    words = [verb, models["sdxl"], "-o", run] if verb == "inspect" else [verb, run]
    (run / name).unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    process = launch(*words, file_limit=limit)
    assert process.wait() == 1, process.stderr
    assert "error: the disk is full" in process.stderr
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("error: ")
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    table = run / "sensitivity.csv"
    if verb == "sensitivity":
        # Only whole rows of the very table.
        rows = after.pop(table)
        assert rows.endswith(b"\n")
        assert (finished / table.name).read_bytes().startswith(rows)
    assert after == before
    process = launch(*words)
    assert process.wait() == 0, process.stderr
    if verb != "report":
        assert (run / name).read_bytes() == (finished / name).read_bytes()
