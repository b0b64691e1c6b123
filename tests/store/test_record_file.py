import pytest
import torch

from mixdq.errors import ArtifactFormatError
from mixdq.store.record_file import read_record, write_record
from mixdq.types.tensors import ActivationRange, CalibrationRecord


def test_record_comes_back_bit_for_bit_and_in_order(tmp_path, record) -> None:
    path = tmp_path / "calibration.safetensors"
    write_record(path, record)
    back = read_record(path)
    assert back.ranges == record.ranges
    assert back.origin == record.origin
    assert back.bos_input is not None
    assert torch.equal(back.bos_input, record.bos_input)
    assert list(back.ranges) == list(back.bos_outputs) == ["z", "a"]
    for layer, row in record.bos_outputs.items():
        assert back.bos_outputs[layer].dtype == row.dtype
        assert torch.equal(back.bos_outputs[layer], row)


def test_equal_records_give_equal_bytes(tmp_path, record) -> None:
    for name in "ab":
        write_record(tmp_path / name, record)
    write_record(tmp_path / "c", read_record(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_record_without_bos_comes_back(tmp_path) -> None:
    record = CalibrationRecord(ranges={"a": (ActivationRange(min=0.0, max=1.0, batches=1),)})
    write_record(tmp_path / "r", record)
    assert read_record(tmp_path / "r") == record


def test_shared_and_sliced_rows_can_be_written(tmp_path) -> None:
    rows = torch.arange(12.0).reshape(4, 3)
    record = CalibrationRecord(ranges={}, bos_input=rows[0], bos_outputs={"a": rows[0], "b": rows[:, 1]})
    write_record(tmp_path / "r", record)
    assert read_record(tmp_path / "r").bos_outputs["b"].tolist() == [1.0, 4.0, 7.0, 10.0]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (torch.tensor([1.0, float("nan")]), "NaN or infinity"),
        (torch.tensor([float("inf")]), "NaN or infinity"),
        (torch.ones(2, 2), "shape"),
        (torch.ones(2, dtype=torch.int64), "int64"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(tmp_path, row, says) -> None:
    write_record(tmp_path / "r", CalibrationRecord(ranges={}, bos_outputs={"layer": row}))
    with pytest.raises(ArtifactFormatError, match=says):
        read_record(tmp_path / "r")


@pytest.mark.parametrize(
    ("old", "new"), [(b"-0.1", b"+0.1"), (b'\\"batches\\": 3', b'\\"batches\\": 0'), (b"-0.1", b" 1e9")]
)
def test_ranges_that_make_no_sense_are_refused(tmp_path, record, old, new) -> None:
    path = tmp_path / "r"
    write_record(path, record)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(ArtifactFormatError):
        read_record(path)
