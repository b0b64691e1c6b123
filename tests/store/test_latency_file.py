import pytest

from mixdq.errors import ArtifactFormatError
from mixdq.store.latency_file import read_latency, write_latency
from mixdq.types.latency import LatencyTable
from mixdq.types.plan import BitPlan, LayerBits

TABLE = LatencyTable(
    layers={"conv_in": {"W4A8": 1 / 3, "W16A16": 2.0}, "to_k": {"W4A8": 0.0}},
    rest=12.5,
    machine={"cores": "2"},
    origin={"layers": "ab"},
)


def test_what_is_written_is_read_back_bit_for_bit_a_line_a_layer(tmp_path) -> None:
    path = tmp_path / "latency.json"
    write_latency(path, TABLE)
    assert read_latency(path) == TABLE
    assert list(read_latency(path).layers) == ["conv_in", "to_k"]
    assert sum("W4A8" in line for line in path.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize(("old", "new"), [("12.5", '"12.5"'), ("2.0", "-2.0"), ("W4A8", "W9A8"), ('"rest"', '"best"')])
def test_damage_is_refused(tmp_path, old, new) -> None:
    path = tmp_path / "latency.json"
    write_latency(path, TABLE)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ArtifactFormatError, match="mixdq benchmark"):
        read_latency(path)


def test_a_plan_takes_its_layers_and_the_rest() -> None:
    bits = {"conv_in": LayerBits(weight=16, activation=16), "to_k": LayerBits(weight=4, activation=8)}
    assert TABLE.of(BitPlan(name="x", layers=bits)) == 14.5
