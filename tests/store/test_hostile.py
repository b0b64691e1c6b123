"""Files that nobody should have to read: whatever the bytes, a value or an ArtifactError comes of them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixdq.errors import ArtifactError, ArtifactFormatError
from mixdq.store.artifact import Schema
from mixdq.store.json_file import read_json, write_json
from mixdq.store.latency_file import read_latency, write_latency
from mixdq.store.objective_file import ObjectiveFile, read_objective, write_objective
from mixdq.store.plan_file import read_plan, write_plan
from mixdq.store.record_file import read_record, write_record
from mixdq.store.sketch_file import SketchLog, read_sketch
from mixdq.store.table_file import SensitivityLog, read_layers, read_sensitivity, write_layers, write_sensitivity
from mixdq.types.latency import LatencyTable

RECEIPT = Schema("receipt", "mixdq apply")

READERS = {
    "plan": read_plan,
    "layers": read_layers,
    "sensitivity": read_sensitivity,
    "log": lambda path: SensitivityLog.open(path, {}).close(),
    "record": read_record,
    "latency": read_latency,
    "objective": read_objective,
    "sketch": read_sketch,
    "json": lambda path: read_json(path, RECEIPT),
}

FOREIGN = [
    b"",
    b"\x00" * 100,
    b"\x80\x04\x95pickle",
    b"[1, 2]",
    b"{}",
    b"null",
    b"PK\x03\x04" + b"0" * 50,
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"\xff" * 16,
    b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
    b"# mixdq.sensitivity/1\n",
    b'schema = "mixdq.plan/1"\n',
    b'{"schema": "mixdq.layers/1"}',
]

SNIPPETS = st.sampled_from(
    [b"NaN", b"nan", b"inf", b"1e999", b"[" * 5000, b"\x00", b"\xff\xfe", b'"', b"\n", b"9" * 5000, b"-1", b"null"]
)


@pytest.fixture
def written(tmp_path, plan, table, sensitivity, record) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in READERS}
    write_plan(paths["plan"], plan)
    write_layers(paths["layers"], table)
    write_sensitivity(paths["sensitivity"], sensitivity)
    write_sensitivity(paths["log"], sensitivity)
    write_record(paths["record"], record)
    write_latency(paths["latency"], LatencyTable(layers={"a": {"W4A8": 1.5}}, rest=1.0))
    columns = {"sqnr": (("a", "weight", 4),)}
    SketchLog.open(paths["sketch"], columns, {}).update({("sqnr", 0, 0): np.array([[0.5]])})
    write_objective(paths["objective"], ObjectiveFile(errors={"fit-001": 0.5}))
    write_json(paths["json"], RECEIPT, {"layers": [{"a": 1.5}], "plan": "x"}, {"model": "d"})
    return paths


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("data", FOREIGN, ids=range(len(FOREIGN)))
def test_foreign_file_is_refused(tmp_path, kind, data) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ArtifactFormatError, match="file"):
        READERS[kind](path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("kind", READERS)
def test_every_kind_refuses_the_others(written, kind) -> None:
    for other, path in written.items():
        if {kind, other} != {"sensitivity", "log"} and kind != other:
            with pytest.raises(ArtifactFormatError):
                READERS[kind](path)


@pytest.mark.parametrize("kind", READERS)
def test_newer_file_asks_for_a_newer_mixdq(written, kind) -> None:
    data = written[kind].read_bytes()
    assert data.count(b"/1") == 1
    written[kind].write_bytes(data.replace(b"/1", b"/3"))
    with pytest.raises(ArtifactFormatError, match="Upgrade MixDQ"):
        READERS[kind](written[kind])


@pytest.mark.parametrize("kind", ["plan", "layers", "sensitivity", "record", "sketch", "json"])
def test_truncated_file_is_refused_or_has_lost_only_whole_rows(written, kind) -> None:
    data = written[kind].read_bytes()
    whole = READERS[kind](written[kind])
    for length in range(0, len(data) - 1, 7):
        written[kind].write_bytes(data[:length])
        try:
            less = READERS[kind](written[kind])
        except ArtifactFormatError:
            continue
        # TOML and CSV cut between two lines are shorter files, not damaged ones; the check against the model finds out.
        assert kind in ("plan", "sensitivity")
        assert less != whole


@pytest.mark.parametrize("kind", READERS)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_bytes_give_a_value_or_an_artifact_error(written, kind, data) -> None:
    path = written[kind]
    original = path.read_bytes()
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutated)))
        cut = data.draw(st.integers(0, 8))
        mutated[place : place + cut] = data.draw(SNIPPETS | st.binary(max_size=4))
    path.write_bytes(mutated)
    try:
        READERS[kind](path)
    except ArtifactError as error:
        complaint = str(error)
    else:
        complaint = str(path)
    finally:
        path.write_bytes(original)
    assert str(path) in complaint
