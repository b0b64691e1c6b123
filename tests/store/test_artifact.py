import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdq.errors import ArtifactError, ArtifactFormatError, StaleArtifactError
from mixdq.store import artifact
from mixdq.store.artifact import (
    Schema,
    atomic_write,
    check_schema,
    digest_of,
    digest_of_file,
    expect_origin,
    read_bytes,
)

PLAN = Schema("plan", "mixdq allocate", version=2)


def test_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    atomic_write(path, b"old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_written_file_has_the_ordinary_rights(tmp_path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    atomic_write(tmp_path / "ours", b"")
    assert stat.S_IMODE(os.stat(tmp_path / "ours").st_mode) == stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_leaves_the_old_file_whole(tmp_path, monkeypatch, call) -> None:
    path = tmp_path / "a.txt"
    atomic_write(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifact.os, call, full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a Linux device that is always full")
def test_full_disk_is_an_os_error_and_the_old_file_stays(tmp_path) -> None:
    path = tmp_path / "a.txt"
    atomic_write(path, b"old")
    (tmp_path / ".a.txt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, b"new" * 10000)
    assert path.read_bytes() == b"old"


def test_killed_writer_leaves_the_old_file_and_does_not_disturb_the_next(tmp_path) -> None:
    path = tmp_path / "a.txt"
    atomic_write(path, b"old")
    code = (
        "import os, sys, pathlib\nfrom mixdq.store import artifact\n"
        "artifact.os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "artifact.atomic_write(pathlib.Path(sys.argv[1]), b'new')\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode != 0
    assert path.read_bytes() == b"old"
    atomic_write(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file_says_what_makes_it(tmp_path) -> None:
    with pytest.raises(ArtifactError, match="no such file; `mixdq allocate` makes it"):
        read_bytes(tmp_path / "plan.toml", PLAN)


def test_folder_and_oversized_file_are_refused_unread(tmp_path) -> None:
    with pytest.raises(ArtifactFormatError, match="folder"):
        read_bytes(tmp_path, PLAN)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(2**40)  # a hole: no disk is used
    with pytest.raises(ArtifactFormatError, match=f"{2**40} bytes"):
        read_bytes(huge, PLAN)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ("mixdq.plan/3", "newer MixDQ"),
        ("mixdq.plan/1", "older"),
        ("mixdq.layers/2", "expected 'mixdq.plan/2'"),
        ("other/2", "damaged"),
        ("mixdq.plan/99999999", "damaged"),
        (None, "damaged"),
        (2, "damaged"),
    ],
)
def test_other_schemas_are_refused(tmp_path, found, says) -> None:
    check_schema(tmp_path, "mixdq.plan/2", PLAN)
    with pytest.raises(ArtifactFormatError, match=says):
        check_schema(tmp_path, found, PLAN)


def test_stale_origin_names_inputs_and_what_to_run(tmp_path) -> None:
    found = {"model": "a" * 64, "layers": "b" * 64, "more": "c"}
    expect_origin(tmp_path, found, {"model": "a" * 64}, "mixdq inspect")
    with pytest.raises(StaleArtifactError, match=r"layers was bbbbbbbbbbbb, is 0+; seed was unknown.*`mixdq inspect`"):
        expect_origin(tmp_path, found, {"layers": "0" * 64, "seed": "1"}, "mixdq inspect")


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
JSON = st.recursive(LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=2), x), max_leaves=6)


@settings(max_examples=60)
@given(JSON, JSON)
def test_digests_differ_exactly_where_values_do(one, other) -> None:
    # Python takes True for 1 and JSON does not, hence the comparison of reprs; keys are drawn in no order.
    assert (digest_of([one]) == digest_of([other])) == (sorted_repr(one) == sorted_repr(other))


def sorted_repr(value: object) -> str:
    if isinstance(value, dict):
        return "dict " + repr(sorted((key, sorted_repr(item)) for key, item in value.items()))
    return repr([sorted_repr(item) for item in value]) if isinstance(value, list) else repr(value)


def test_digests_of_dataclasses_text_and_files_agree(tmp_path, table) -> None:
    assert digest_of(table) == digest_of({**vars(table), "layers": [vars(layer) for layer in table]})
    (tmp_path / "f").write_text("abc")
    assert digest_of("abc") == digest_of(b"abc") == digest_of_file(tmp_path / "f")
    with pytest.raises(TypeError, match="no digest of a set"):
        digest_of({1})
