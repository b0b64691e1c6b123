"""sketch.safetensors: the products of a sketch's vectors with the error of every layer at every width.

Tensor "<metric>/<part>/<number>", float64 [samples, columns], is a vector on a part of the recorded run. The header
(`tensor_header`) says of each metric what its columns are. A file is written whole after every slice, and never torn.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from mixdq.store.artifact import Schema, atomic_write, bad_format, expect_origin, read_bytes
from mixdq.store.json_file import decode
from mixdq.store.tensor_header import read_tensor_header, tensor_header
from mixdq.types.scores import Role, VectorKey

SKETCH = Schema("sketch", "mixdq sensitivity")

MAX_SKETCH_BYTES = 2**31

Floats = NDArray[np.float64]
Column = tuple[str, Role, int]
"""A layer, a role and a width."""
Columns = dict[str, tuple[Column, ...]]
"""Metric -> what its products are of."""

_NAME = re.compile(r"([a-z_]{1,40})/(0|[1-9][0-9]{0,5})/(0|[1-9][0-9]{0,5})")


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """What is on file: (metric, part, number) -> products [samples, columns], and what they were made from."""

    columns: Columns
    vectors: dict[VectorKey, Floats]
    origin: Mapping[str, str]

    def products(self) -> dict[str, Floats]:
        """Return metric -> products [vectors, samples, columns], of the vectors that are there on every part."""
        out = {}
        for metric, of_metric in self.columns.items():
            parts = sorted({part for name, part, _ in self.vectors if name == metric})
            numbers = sorted({number for name, _, number in self.vectors if name == metric})
            whole = [n for n in numbers if all((metric, part, n) in self.vectors for part in parts)]
            stacked = [np.concatenate([self.vectors[metric, part, n] for part in parts]) for n in whole]
            out[metric] = np.stack(stacked) if stacked else np.zeros((0, 0, len(of_metric)))
        return out


class SketchLog:
    """The vectors on file, and where more of them go; they are on disk when `update` returns."""

    def __init__(self, path: Path, sketch: Sketch) -> None:
        self._path, self._sketch = path, sketch

    @classmethod
    def open(cls, path: Path, columns: Columns, origin: Mapping[str, str], rerun: str | None = None) -> Self:
        """Return the log of `path`; without a file it is empty, and the first vectors make one.

        Raises:
            StaleArtifactError: the file is of another `origin`, or has other columns; the text says to run `rerun`.
            ArtifactFormatError: the file is foreign, damaged or newer.
        """
        if not path.exists():
            return cls(path, Sketch(columns=columns, vectors={}, origin=origin))
        found = read_sketch(path)
        expect_origin(path, found.origin, origin, rerun or f"rm {path} && {SKETCH.made_by} {path.parent}")
        if found.columns != columns:
            raise bad_format(path, SKETCH, "its columns are not those that its origin stands for")
        return cls(path, found)

    def __contains__(self, key: VectorKey) -> bool:
        return key in self._sketch.vectors

    def __getitem__(self, key: VectorKey) -> Floats:
        return self._sketch.vectors[key]

    def update(self, found: Mapping[VectorKey, Floats]) -> None:
        """Keep more vectors; an OSError (disk full) leaves the file without them."""
        whole = {**self._sketch.vectors, **found}
        tensors = {
            f"{metric}/{part}/{number}": np.ascontiguousarray(vector)
            for (metric, part, number), vector in whole.items()
        }
        header = tensor_header(SKETCH, {"columns": self._sketch.columns}, self._sketch.origin)
        atomic_write(self._path, safetensors.numpy.save(tensors, metadata=header))
        self._sketch.vectors.update(found)


def read_sketch(path: Path) -> Sketch:
    """Return a file's vectors; ArtifactError where it is missing, foreign, damaged, newer, or not finite."""
    data = read_bytes(path, SKETCH, MAX_SKETCH_BYTES)
    header, origin = read_tensor_header(path, data, SKETCH)
    columns = decode(path, SKETCH, Columns, header.pop("columns", None))
    if header:
        raise bad_format(path, SKETCH, f"unknown key {min(header)!r}")
    try:
        tensors = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise bad_format(path, SKETCH, f"its tensors cannot be read ({error})") from error
    samples: dict[tuple[str, int], int] = {}
    vectors = {}
    for name, vector in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or match[1] not in columns:
            raise bad_format(path, SKETCH, f"unknown tensor {name!r:.80}")
        metric, part, number = match[1], int(match[2]), int(match[3])
        fits = vector.ndim == 2 and vector.shape[1] == len(columns[metric])
        if vector.dtype != np.float64 or not fits or len(vector) != samples.setdefault((metric, part), len(vector)):
            raise bad_format(path, SKETCH, f"{name} is {vector.dtype} of shape {vector.shape}")
        if not np.isfinite(vector).all():
            raise bad_format(path, SKETCH, f"{name} holds NaN or infinity")
        vectors[metric, part, number] = vector
    return Sketch(columns=columns, vectors=vectors, origin=origin)
