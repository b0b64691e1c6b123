import errno
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixdq.errors import ArtifactFormatError, ConfigError, StaleArtifactError
from mixdq.store import table_file
from mixdq.store.artifact import atomic_write
from mixdq.store.table_file import (
    SensitivityLog,
    format_row,
    read_layers,
    read_sensitivity,
    write_layers,
    write_sensitivity,
)
from mixdq.types.scores import Score, SensitivityTable

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1)
SCORES = st.builds(
    Score,
    layer=NAMES,
    role=st.sampled_from(["weight", "activation"]),
    num_bits=st.sampled_from([2, 4, 8]),
    metric=st.sampled_from(["ssim", "sqnr"]),
    value=st.floats(allow_nan=False),
)


def test_layers_come_back_equal_one_line_each(tmp_path, table) -> None:
    path = tmp_path / "layers.json"
    write_layers(path, table)
    assert read_layers(path) == table
    lines = path.read_text().splitlines()
    assert lines[1] == ' "schema": "mixdq.layers/1",'
    assert sum('"name"' in line for line in lines) == len(table)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"linear"', '"attention"'),
        ("[2, 4]", "[2, 4, 1]"),
        ('"c"', '"a.b"'),
        ('"bos": true', '"bos": 1'),
        ("64", '"64"'),
    ],
)
def test_layers_that_make_no_sense_are_refused(tmp_path, table, old, new) -> None:
    path = tmp_path / "layers.json"
    write_layers(path, table)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ArtifactFormatError, match="layers"):
        read_layers(path)


@given(st.lists(SCORES, unique_by=lambda score: score.key))
def test_scores_come_back_bit_for_bit(tmp_path_factory, scores) -> None:
    path = tmp_path_factory.mktemp("s") / "sensitivity.csv"
    table = SensitivityTable(scores=tuple(scores), origin={"model": "ü"})
    write_sensitivity(path, table)
    assert read_sensitivity(path) == table


def test_log_writes_the_same_bytes_as_the_whole_table(tmp_path, sensitivity) -> None:
    write_sensitivity(tmp_path / "whole.csv", sensitivity)
    with SensitivityLog.open(tmp_path / "log.csv", sensitivity.origin) as log:
        assert log.done == set()
        for score in sensitivity.scores:
            log.append(score)
            assert score.key in log.done
        assert log.table == sensitivity
    assert (tmp_path / "log.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


ESTIMATES = st.builds(
    Score,
    layer=NAMES,
    role=st.sampled_from(["weight", "activation"]),
    num_bits=st.sampled_from([2, 4, 8]),
    metric=st.sampled_from(["ssim", "sqnr"]),
    value=st.floats(allow_nan=False),
    stderr=st.none() | st.floats(min_value=0, allow_infinity=False),
)


@given(st.lists(ESTIMATES, unique_by=lambda score: score.key))
def test_estimates_come_back_bit_for_bit(tmp_path_factory, scores) -> None:
    path = tmp_path_factory.mktemp("s") / "sensitivity.csv"
    table = SensitivityTable(scores=tuple(scores), origin={"model": "d"})
    write_sensitivity(path, table)
    assert read_sensitivity(path) == table
    estimated = any(score.stderr is not None for score in scores)
    assert path.read_text(encoding="utf-8").startswith(f"# mixdq.sensitivity/{2 if estimated else 1}\n")


def test_an_exact_score_replaces_an_estimate_and_nothing_else_does(tmp_path) -> None:
    path = tmp_path / "sensitivity.csv"
    guess = Score(layer="a", role="weight", num_bits=4, metric="ssim", value=0.5, stderr=0.25)
    other, exact = replace(guess, layer="b"), replace(guess, value=0.75, stderr=None)
    with SensitivityLog.open(path, {}, estimated=True) as log:
        for score in (guess, other, exact):
            log.append(score)
        for again in (guess, exact):
            with pytest.raises(ValueError, match="already"):
                log.append(again)
        assert log.table.scores == (exact, other)
    with SensitivityLog.open(path, {}, estimated=True) as log:
        assert log.table.scores == (exact, other) == read_sensitivity(path).scores
        assert log.estimates == {guess.key: guess, other.key: other}
    for again in (guess, exact):
        path.write_text(path.read_text().rstrip("\n") + "\n" + format_row(again, table_file.SENSITIVITY))
        with pytest.raises(ArtifactFormatError, match="line 7 repeats"):
            read_sensitivity(path)
        path.write_text("\n".join(path.read_text().splitlines()[:6]) + "\n")


def test_exact_rows_are_read_from_a_torn_table_that_says_what_it_notes(tmp_path) -> None:
    path = tmp_path / "sensitivity.csv"
    guess = Score(layer="a", role="weight", num_bits=4, metric="ssim", value=0.5, stderr=0.25)
    other, exact = replace(guess, layer="b"), replace(guess, value=0.75, stderr=None)
    with SensitivityLog.open(path, {"m": "d"}, estimated=True, noted={"rows": "r"}) as log:
        for score in (guess, other, exact):
            log.append(score)
    path.write_text(path.read_text() + "b,weight,4,ssim,0.1")
    found = table_file.read_exact(path)
    assert (found.scores, found.origin) == ((exact,), {"m": "d", "rows": "r"})
    # What is noted is asked of nobody.
    SensitivityLog.open(path, {"m": "d"}, noted={"rows": "other"}).close()


def test_a_table_of_exact_scores_takes_no_estimates(tmp_path) -> None:
    with SensitivityLog.open(tmp_path / "sensitivity.csv", {}) as log, pytest.raises(ValueError, match="estimate"):
        log.append(Score(layer="a", role="weight", num_bits=4, metric="ssim", value=0.5, stderr=0.25))


def test_log_continues_after_a_kill_at_any_byte(tmp_path, sensitivity) -> None:
    path = tmp_path / "sensitivity.csv"
    write_sensitivity(path, sensitivity)
    data = path.read_bytes()
    head = data.index(b"value\n") + len(b"value\n")
    for length in range(head, len(data) + 1):
        path.write_bytes(data[:length])
        with SensitivityLog.open(path, sensitivity.origin) as log:
            for score in sensitivity.scores:
                if score.key not in log.done:
                    log.append(score)
        assert path.read_bytes() == data


def test_log_survives_kill_9(tmp_path) -> None:
    path = tmp_path / "sensitivity.csv"
    code = (
        "import os, sys, pathlib\nfrom mixdq.store.table_file import SensitivityLog\n"
        "from mixdq.types.scores import Score\n"
        "log = SensitivityLog.open(pathlib.Path(sys.argv[1]), {'m': 'd'})\n"
        "log.append(Score(layer='a', role='weight', num_bits=4, metric='ssim', value=0.5))\nos.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode != 0
    assert [score.value for score in read_sensitivity(path).scores] == [0.5]


@pytest.mark.skipif(table_file.fcntl is None, reason="this system knows no such locks")
def test_a_log_that_another_process_has_open_is_refused_until_that_ends(tmp_path) -> None:
    path = tmp_path / "sensitivity.csv"
    code = (
        "import sys, pathlib\nfrom mixdq.store.table_file import SensitivityLog\n"
        "log = SensitivityLog.open(pathlib.Path(sys.argv[1]), {'m': 'd'})\n"
        "print('open', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        # Whatever else is wrong with it: it is not to be put aside either.
        for origin in ({"m": "d"}, {"m": "other"}):
            with pytest.raises(ConfigError, match=r"sensitivity\.csv: another process is measuring"):
                SensitivityLog.open(path, origin)
        other.stdin.close()
    SensitivityLog.open(path, {"m": "d"}).close()
    # One that is refused is let go.
    with pytest.raises(StaleArtifactError):
        SensitivityLog.open(path, {"m": "other"})
    SensitivityLog.open(path, {"m": "d"}).close()


@pytest.mark.skipif(table_file.fcntl is None, reason="this system knows no such locks")
def test_a_log_that_another_process_begins_anew_meanwhile_is_refused(tmp_path, monkeypatch) -> None:
    path = tmp_path / "sensitivity.csv"
    SensitivityLog.open(path, {"m": "d"}).close()
    lock = table_file.fcntl.flock

    def late(*arguments: object) -> None:
        atomic_write(path, path.read_bytes())
        lock(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(table_file.fcntl, "flock", late)
        with pytest.raises(ConfigError, match=r"sensitivity\.csv: another process is measuring"):
            SensitivityLog.open(path, {"m": "d"})
    SensitivityLog.open(path, {"m": "d"}).close()


def test_torn_row_is_refused_by_the_reader(tmp_path, sensitivity) -> None:
    path = tmp_path / "sensitivity.csv"
    write_sensitivity(path, sensitivity)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactFormatError, match="torn"):
        read_sensitivity(path)


def test_log_of_other_inputs_is_refused_and_left_alone(tmp_path, sensitivity) -> None:
    path = tmp_path / "sensitivity.csv"
    write_sensitivity(path, sensitivity)
    data = path.read_bytes()
    with pytest.raises(StaleArtifactError, match="model was abababab"):
        SensitivityLog.open(path, {"model": "0" * 64})
    assert path.read_bytes() == data


def test_full_disk_leaves_the_log_without_the_row(tmp_path, sensitivity, monkeypatch) -> None:
    path = tmp_path / "sensitivity.csv"
    first, second, _ = sensitivity.scores
    with SensitivityLog.open(path, {}) as log:
        log.append(first)
        data = path.read_bytes()

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(table_file.os, "fsync", full)
            with pytest.raises(OSError, match="No space"):
                log.append(second)
        assert path.read_bytes() == data
        log.append(second)
    assert read_sensitivity(path).scores == (first, second)


def test_same_measurement_twice_is_refused(tmp_path, sensitivity) -> None:
    path = tmp_path / "sensitivity.csv"
    score = sensitivity.scores[0]
    with SensitivityLog.open(path, {}) as log:
        log.append(score)
        with pytest.raises(ValueError, match="already"):
            log.append(score)
    path.write_text(path.read_text() + format_row(score))
    with pytest.raises(ArtifactFormatError, match="line 5 repeats"):
        read_sensitivity(path)


@pytest.mark.parametrize(
    "row",
    ["a,weight,4,ssim,nan", "a,weight,9,ssim,1", "a,bias,4,ssim,1", "a,weight,4,ssim", ",weight,4,ssim,1", "", 'a,"x'],
)
def test_wrong_row_is_named_by_its_line(tmp_path, row) -> None:
    path = tmp_path / "sensitivity.csv"
    write_sensitivity(path, SensitivityTable(scores=(), origin={}))
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(ArtifactFormatError, match="line 4"):
        read_sensitivity(path)


def test_name_with_a_line_break_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="one line"):
        format_row(Score(layer="a\nb", role="weight", num_bits=4, metric="ssim", value=math.inf))
