import json

import pytest

from mixdq.errors import ArtifactFormatError
from mixdq.store.artifact import Schema
from mixdq.store.json_file import decode, encode, read_json, write_json
from mixdq.types.plan import Budget

RECEIPT = Schema("receipt", "mixdq apply")


def test_content_and_origin_come_back(tmp_path) -> None:
    path = tmp_path / "receipt.json"
    content = {"rows": [{"a": 1, "b": [0.1, float("inf")]}, {}], "empty": [], "text": "ü\n", "none": None}
    write_json(path, RECEIPT, content, {"plan": "d"})
    back = read_json(path, RECEIPT)
    assert (back.content, back.origin) == (content, {"plan": "d"})
    assert list(json.loads(path.read_text()))[:2] == ["schema", "origin"]


def test_equal_content_gives_equal_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        write_json(tmp_path / name, RECEIPT, {"x": [1, 2]}, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nan_is_neither_written_nor_read(tmp_path) -> None:
    path = tmp_path / "receipt.json"
    with pytest.raises(ValueError, match="NaN"):
        write_json(path, RECEIPT, {"x": float("nan")}, {})
    assert not path.exists()
    path.write_text('{"schema": "mixdq.receipt/1", "origin": {}, "x": NaN}')
    with pytest.raises(ArtifactFormatError, match="NaN"):
        read_json(path, RECEIPT)


def test_reserved_keys_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="schema or origin"):
        write_json(tmp_path / "x", RECEIPT, {"origin": 1}, {})


def test_values_of_our_types_make_the_round_trip(tmp_path) -> None:
    budget = Budget(weight_bytes=10**12, keep=("a",))
    assert decode(tmp_path, RECEIPT, Budget, json.loads(json.dumps(encode(Budget, budget)))) == budget


def test_unknown_key_and_wrong_type_are_named(tmp_path) -> None:
    with pytest.raises(ArtifactFormatError, match="weight_bit"):
        decode(tmp_path, RECEIPT, Budget, {"weight_bit": 4})
    with pytest.raises(ArtifactFormatError, match=r"weight_bits: .* found '4'"):
        decode(tmp_path, RECEIPT, Budget, {"weight_bits": "4"})
