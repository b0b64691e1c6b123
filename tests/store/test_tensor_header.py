import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from mixdq.errors import ArtifactFormatError
from mixdq.store.artifact import Schema
from mixdq.store.tensor_header import read_tensor_header, tensor_header

KIND = Schema("calibration", "mixdq calibrate")


@given(content=st.dictionaries(st.text().filter(lambda key: key not in ("schema", "origin")), st.integers()))
def test_a_header_comes_back(tmp_path_factory, content) -> None:
    data = safetensors.numpy.save({}, metadata=tensor_header(KIND, content, {"model": "d"}))
    assert read_tensor_header(tmp_path_factory.getbasetemp(), data, KIND) == (content, {"model": "d"})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated"),
        (b"\xff" * 8 + b"{}", "truncated"),
        (b"\x02" + b"\x00" * 7 + b"\xff\xff", "not text"),
        (b"\x02" + b"\x00" * 7 + b"{}", "no header of MixDQ"),
        (safetensors.numpy.save({}, metadata={"mixdq": "[]"}), "no header of MixDQ"),
        (safetensors.numpy.save({}, metadata=tensor_header(Schema("sketch", ""), {}, {})), "mixdq.sketch/1"),
    ],
)
def test_what_is_no_header_of_this_kind_is_refused(tmp_path, data, says) -> None:
    with pytest.raises(ArtifactFormatError, match=says):
        read_tensor_header(tmp_path / "file", data, KIND)
