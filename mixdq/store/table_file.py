"""layers.json, written once, and sensitivity.csv, which grows by a row with every measurement.

    # mixdq.sensitivity/1
    # origin {"layers": "...", "model": "..."}
    layer,role,num_bits,metric,value
    mid_block.attentions.0.proj_in,weight,4,sqnr,31.25

Where scores are estimates the version is 2 and each row has one more column, `stderr`, empty for what was measured
exactly; such a row may follow an estimate of the same, and replaces it.
Values are written so that they are read back bit for bit. `SensitivityLog` appends; a process killed in the middle
of a row leaves at most a torn last line, which the next one cuts off.
"""

import csv
import io
import json
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from io import FileIO
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from mixdq.errors import ArtifactFormatError, ConfigError
from mixdq.store.artifact import Schema, atomic_write, bad_format, check_schema, expect_origin, read_bytes
from mixdq.store.json_file import decode, encode, parse_json, read_json, write_json
from mixdq.types.layers import LayerTable
from mixdq.types.scores import ROLES, Score, ScoreKey, SensitivityTable

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

LAYERS = Schema("layers", "mixdq inspect")
SENSITIVITY = Schema("sensitivity", "mixdq sensitivity", version=2)

_HEADER = "layer,role,num_bits,metric,value"
_EXACT = Schema(SENSITIVITY.kind, SENSITIVITY.made_by, version=1)
_HEADER_OF = {_EXACT: _HEADER, SENSITIVITY: f"{_HEADER},stderr"}


def write_layers(path: Path, table: LayerTable, origin: Mapping[str, str] | None = None) -> None:
    """Write a layer table as JSON, one line a layer; the model's digest is its origin unless another is given."""
    write_json(path, LAYERS, encode(LayerTable, table), {"model": table.digest} if origin is None else origin)


def read_layers(path: Path) -> LayerTable:
    """Return the layer table of a file; ArtifactError where it is missing, foreign, damaged or newer."""
    return decode(path, LAYERS, LayerTable, read_json(path, LAYERS).content)


def write_sensitivity(path: Path, table: SensitivityTable) -> None:
    """Write a whole sensitivity table, atomically; the bytes are those of a `SensitivityLog` fed with its scores."""
    schema = SENSITIVITY if any(score.stderr is not None for score in table.scores) else _EXACT
    text = _head(schema, table.origin) + "".join(format_row(score, schema) for score in table.scores)
    atomic_write(path, text.encode("utf-8"))


def read_sensitivity(path: Path) -> SensitivityTable:
    """Return the table of a file; ArtifactError where it is missing, foreign, newer, damaged, or torn in a row."""
    data = read_bytes(path, SENSITIVITY)
    if not data.endswith(b"\n"):
        raise bad_format(path, SENSITIVITY, "its last line is torn (the same command continues it)")
    return _parse(path, data)[1]


def read_exact(path: Path) -> SensitivityTable:
    """Return the rows without a standard error, of a torn file the whole ones; else as `read_sensitivity`."""
    data = read_bytes(path, SENSITIVITY)
    table = _parse(path, data[: data.rfind(b"\n") + 1])[1]
    return replace(table, scores=tuple(score for score in table.scores if score.stderr is None))


def read_estimates(path: Path) -> dict[ScoreKey, Score]:
    """Return the rows with a standard error, those too that exact ones replace; errors as `read_sensitivity`."""
    _, _, estimates = _parse(path, read_bytes(path, SENSITIVITY))
    return estimates


def format_row(score: Score, schema: Schema = _EXACT) -> str:
    """Return the line of one score; ValueError where a name holds a line break, or an estimate has no column."""
    if schema == _EXACT and score.stderr is not None:
        raise ValueError(f"{score.key} is an estimate, and the table is of exact scores")
    if any(mark in score.layer + score.metric for mark in "\r\n\0"):
        raise ValueError(f"{score.layer!r}: a name in a table must fit on one line")
    out = io.StringIO()
    row = [score.layer, score.role, score.num_bits, score.metric, repr(float(score.value))]
    if schema != _EXACT:
        row.append("" if score.stderr is None else repr(float(score.stderr)))
    csv.writer(out, lineterminator="\n").writerow(row)
    return out.getvalue()


class SensitivityLog:
    """An open sensitivity.csv: `done` says what has been measured, `append` adds a row and has it on disk.

    Use as a context manager. One process at a time has a file open: it is locked, where the system knows how.
    """

    def __init__(
        self, file: FileIO, schema: Schema, table: SensitivityTable, estimates: Mapping[ScoreKey, Score]
    ) -> None:
        self._file, self._schema = file, schema
        self.estimates = dict(estimates)
        """All rows that came with a standard error, those too that an exact one has replaced since."""
        self._origin = table.origin
        self._scores = {score.key: score for score in table.scores}

    @classmethod
    def open(
        cls,
        path: Path,
        origin: Mapping[str, str],
        rerun: str | None = None,
        *,
        estimated: bool = False,
        noted: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """Return the log of `path`: begun if there is no file, else continued, a torn last line cut off.

        A file that is begun has room for standard errors if its scores are to be `estimated`, and names what is `noted`
        beside its origin, which nobody asks of one that is gone on with.

        Raises:
            ConfigError: another process has it open.
            StaleArtifactError: the file was begun from another `origin`; the text says to run `rerun`, or to remove it.
            ArtifactFormatError: the file is foreign, damaged or newer.
        """
        if not path.exists():
            atomic_write(path, _head(SENSITIVITY if estimated else _EXACT, {**noted, **origin}).encode("utf-8"))
        # What cannot be such a file is refused before it is opened for writing.
        read_bytes(path, SENSITIVITY)
        with ExitStack() as stack:
            file = stack.enter_context(path.open("ab", buffering=0))
            _lock(path, file)
            data = read_bytes(path, SENSITIVITY)
            whole = data[: data.rfind(b"\n") + 1]
            schema, table, estimates = _parse(path, whole)
            expect_origin(path, table.origin, origin, rerun or f"rm {path} && {SENSITIVITY.made_by} {path.parent}")
            if len(whole) < len(data):
                os.truncate(path, len(whole))
            stack.pop_all()
        return cls(file, schema, table, estimates)

    @property
    def done(self) -> set[ScoreKey]:
        """What has been measured."""
        return set(self._scores)

    @property
    def table(self) -> SensitivityTable:
        """All scores so far, in the order of the file."""
        return SensitivityTable(scores=tuple(self._scores.values()), origin=self._origin)

    def append(self, score: Score) -> None:
        """Add a row, which may replace an estimate; it is on disk when this returns.

        An OSError (disk full) leaves the file without it.
        """
        if not _may_follow(score, self._scores):
            raise ValueError(f"{score.key} has been measured already")
        line = memoryview(format_row(score, self._schema).encode("utf-8"))
        end = os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise
        self._scores[score.key] = score
        if score.stderr is not None:
            self.estimates[score.key] = score

    def close(self) -> None:
        """Close the file; nothing can be appended any more."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock(path: Path, file: FileIO) -> None:
    """Keep other processes from opening a log until `file` is closed; ConfigError where one has it open."""
    if fcntl is None:
        return
    busy = f"{path}: another process is measuring into this file. Wait for it or stop it; what it measures is kept"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(busy) from error
    except OSError as error:
        log.warning("%s: its file system knows no locks (%s); let one process at a time measure", path, error)
    # Another process may have begun a file of its own between the opening and the lock.
    if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
        raise ConfigError(busy)


def _head(schema: Schema, origin: Mapping[str, str]) -> str:
    return f"# {schema}\n# origin {json.dumps(dict(origin), sort_keys=True)}\n{_HEADER_OF[schema]}\n"


def _may_follow(score: Score, known: Mapping[ScoreKey, Score]) -> bool:
    before = known.get(score.key)
    return before is None or (before.stderr is not None and score.stderr is None)


def _parse(path: Path, data: bytes) -> tuple[Schema, SensitivityTable, dict[ScoreKey, Score]]:
    """Return the version, the table and all estimates of whole lines."""
    try:
        lines = data.decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise bad_format(path, SENSITIVITY, "it is not UTF-8 text") from error
    tag = lines[0].removeprefix("# ") if lines else None
    schema = _EXACT if tag == str(_EXACT) else SENSITIVITY
    check_schema(path, tag, schema)
    if len(lines) < 3 or not lines[1].startswith("# origin ") or lines[2] != _HEADER_OF[schema]:
        raise bad_format(path, SENSITIVITY, "its first three lines are not those of such a file")
    origin = parse_json(path, SENSITIVITY, lines[1].removeprefix("# origin "))
    scores: dict[ScoreKey, Score] = {}
    estimates: dict[ScoreKey, Score] = {}
    for number, line in enumerate(lines[3:], start=4):
        score = _parse_row(path, number, line, schema)
        if not _may_follow(score, scores):
            raise bad_format(path, SENSITIVITY, f"line {number} repeats {score.key}")
        scores[score.key] = score
        if score.stderr is not None:
            estimates[score.key] = score
    table = SensitivityTable(scores=tuple(scores.values()), origin=decode(path, SENSITIVITY, dict[str, str], origin))
    return schema, table, estimates


def _parse_row(path: Path, number: int, line: str, schema: Schema) -> Score:
    try:
        layer, role, bits, metric, value, *rest = next(csv.reader([line], strict=True))
        if role not in ROLES or not layer or not metric or len(rest) != (schema != _EXACT):
            raise ValueError(f"expected {_HEADER_OF[schema]}")
        stderr = float(rest[0]) if rest and rest[0] else None
        return Score(layer=layer, role=role, num_bits=int(bits), metric=metric, value=float(value), stderr=stderr)
    except (ValueError, csv.Error, StopIteration) as error:
        raise ArtifactFormatError(
            f"{path}, line {number}: {line[:80]!r} is not a row of a sensitivity table ({error}). "
            f"Mend or remove the line, or measure again with `{SENSITIVITY.made_by}`."
        ) from error
