import pytest

from mixdq.errors import ArtifactFormatError
from mixdq.store.objective_file import ObjectiveFile, read_objective, write_objective
from mixdq.types.scores import ErrorModel

MODEL = ErrorModel(
    weights={"content": {"weight": 0.1 + 0.2, "activation": 1.0}, "quality": {"weight": 3.0, "activation": 0.1}},
    plans=2,
    correlation=-0.5,
)


@pytest.mark.parametrize("model", [None, MODEL])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, model) -> None:
    path = tmp_path / "objective.json"
    objective = ObjectiveFile(errors={"fit-001": 1 / 3, "fit-002": 0.0}, model=model, origin={"fit": "ab"})
    write_objective(path, objective)
    assert read_objective(path) == objective
    first = path.read_bytes()
    write_objective(path, read_objective(path))
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("old", "new"), [('"plans": 2', '"plans": "2"'), ("3.0", "-3.0"), ('"errors"', '"error"'), ("0.0]", '"x"]')]
)
def test_damage_is_refused(tmp_path, old, new) -> None:
    path = tmp_path / "objective.json"
    write_objective(path, ObjectiveFile(errors={"fit-001": 0.0}, model=MODEL))
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ArtifactFormatError, match="mixdq fit"):
        read_objective(path)
