from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from mixdq.errors import ArtifactFormatError, StaleArtifactError
from mixdq.store.sketch_file import SKETCH, SketchLog, read_sketch
from mixdq.store.tensor_header import tensor_header

COLUMNS = {"sqnr": (("a.b", "weight", 4), ("a.b", "activation", 8)), "ssim": (("c", "weight", 2),)}
VECTORS = {
    ("sqnr", 0, 0): np.array([[0.1, -1e-300], [1 / 3, 2.0]]),
    ("sqnr", 1, 0): np.array([[0.5, 0.25]]),
    ("ssim", 0, 31): np.array([[-0.0], [7.0]]),
}


def written(path: Path, tensors: dict[str, np.ndarray], columns: object = COLUMNS) -> Path:
    header = tensor_header(SKETCH, {"columns": columns}, {"model": "d"})
    path.write_bytes(safetensors.numpy.save(tensors, metadata=header))
    return path


def test_vectors_come_back_bit_for_bit_whenever_they_were_kept(tmp_path) -> None:
    path = tmp_path / "sketch.safetensors"
    for key, vector in VECTORS.items():
        log = SketchLog.open(path, COLUMNS, {"model": "d"})
        assert key not in log
        log.update({key: vector})
        assert key in log
    log = SketchLog.open(path, COLUMNS, {"model": "d"})
    found = read_sketch(path)
    assert (found.columns, found.origin) == (COLUMNS, {"model": "d"})
    assert found.vectors.keys() == VECTORS.keys()
    for key, vector in VECTORS.items():
        assert found.vectors[key].tobytes() == log[key].tobytes() == vector.tobytes()


def test_nothing_kept_is_no_file(tmp_path) -> None:
    SketchLog.open(tmp_path / "sketch.safetensors", COLUMNS, {})
    assert not list(tmp_path.iterdir())


def test_of_other_inputs_it_is_not_gone_on_with(tmp_path) -> None:
    path = tmp_path / "sketch.safetensors"
    SketchLog.open(path, COLUMNS, {"model": "d"}).update(VECTORS)
    with pytest.raises(StaleArtifactError, match=r"model was d, is e.*mixdq sensitivity"):
        SketchLog.open(path, COLUMNS, {"model": "e"})
    with pytest.raises(ArtifactFormatError, match="columns"):
        SketchLog.open(path, {**COLUMNS, "ssim": (("c", "weight", 4),)}, {"model": "d"})


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"sqnr/0/0": np.zeros((1, 3))}, "of shape"),
        ({"sqnr/0/0": np.zeros(2)}, "of shape"),
        ({"sqnr/0/0": np.zeros((1, 2)), "sqnr/0/1": np.zeros((2, 2))}, "of shape"),
        ({"sqnr/0/0": np.zeros((1, 2), dtype=np.float32)}, "float32"),
        ({"sqnr/0/0": np.array([[1.0, np.nan]])}, "NaN or infinity"),
        ({"psnr/0/0": np.zeros((1, 2))}, "unknown tensor 'psnr/0/0'"),
        ({"sqnr/00/0": np.zeros((1, 2))}, "unknown tensor"),
        ({"sqnr/0": np.zeros((1, 2))}, "unknown tensor"),
    ],
)
def test_vectors_that_cannot_be_used_are_refused(tmp_path, tensors, says) -> None:
    with pytest.raises(ArtifactFormatError, match=says):
        read_sketch(written(tmp_path / "s", tensors))


@pytest.mark.parametrize("columns", [None, [], {"sqnr": [["a", "bias", 4]]}, {"sqnr": [["a", "weight", "4"]]}])
def test_columns_that_are_none_are_refused(tmp_path, columns) -> None:
    with pytest.raises(ArtifactFormatError, match="sketch file"):
        read_sketch(written(tmp_path / "s", {}, columns))


def test_equal_vectors_give_equal_bytes(tmp_path) -> None:
    for name, keys in (("a", list(VECTORS)), ("b", list(reversed(VECTORS)))):
        log = SketchLog.open(tmp_path / name, COLUMNS, {"model": "d"})
        for key in keys:
            log.update({key: VECTORS[key]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
