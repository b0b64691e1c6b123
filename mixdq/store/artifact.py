"""What all files of a run share: atomic writes, bounded reads, the schema line, digests and the check of origins."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from mixdq.errors import ArtifactError, ArtifactFormatError, StaleArtifactError

MAX_TEXT_BYTES = 64 * 2**20
"""Greatest size of a text file that is read: SDXL's largest table takes less than one of these 64 MiB."""

_TAG = re.compile(r"mixdq\.([a-z_]+)/([1-9][0-9]{0,5})")


@dataclasses.dataclass(frozen=True)
class Schema:
    """What kind of file it is, written "mixdq.plan/1", and the command that makes one, for error texts."""

    kind: str
    made_by: str
    version: int = 1

    def __str__(self) -> str:
        return f"mixdq.{self.kind}/{self.version}"


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that at every moment the old file or the new one is there, whole.

    Missing folders are made. A disk that is full, or any other OSError, leaves the old file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_bytes(path: Path, schema: Schema, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Return the file's bytes; refuse, without reading, what is missing, a folder, or larger than `limit`."""
    if not path.exists():
        raise ArtifactError(f"{path}: there is no such file; `{schema.made_by}` makes it")
    if not path.is_file():
        raise ArtifactFormatError(f"{path}: expected a {schema.kind} file, found a folder or a device")
    size = path.stat().st_size
    if size > limit:
        raise ArtifactFormatError(f"{path}: {size} bytes, more than the {limit} that a {schema.kind} file may have")
    return path.read_bytes()


def read_text(path: Path, schema: Schema) -> str:
    """Return the file's text; ArtifactFormatError where it is not UTF-8, else as `read_bytes`."""
    try:
        return read_bytes(path, schema).decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad_format(path, schema, f"it is not UTF-8 text ({error.reason} at byte {error.start})") from error


def check_schema(path: Path, found: object, schema: Schema) -> None:
    """Raise ArtifactFormatError unless `found` is the tag of this kind of file in a version that can be read."""
    match = _TAG.fullmatch(found) if isinstance(found, str) else None
    if match is None or match[1] != schema.kind:
        raise bad_format(path, schema, f"its schema is {found!r:.80}, expected '{schema}'")
    if int(match[2]) > schema.version:
        raise ArtifactFormatError(
            f"{path}: written by a newer MixDQ (schema {found}, this one reads up to {schema}). Upgrade MixDQ, "
            f"or make the file again with `{schema.made_by}`."
        )
    if int(match[2]) < schema.version:
        raise bad_format(path, schema, f"its schema {found} is older than {schema}")


def expect_origin(path: Path, found: Mapping[str, str], expected: Mapping[str, str], rerun: str) -> None:
    """Raise StaleArtifactError where the file was made from other inputs than `expected`; `rerun` says what to run.

    Only the keys of `expected` are compared, each a name of an input mapped to its digest.
    """
    wrong = [name for name, digest in expected.items() if found.get(name) != digest]
    if wrong:
        details = "; ".join(f"{name} was {_short(found.get(name))}, is {_short(expected[name])}" for name in wrong)
        raise StaleArtifactError(f"{path}: made from other inputs than the present ones ({details}). Run `{rerun}`.")


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value in hexadecimal: bytes and text as they are, all else as canonical JSON.

    Takes what JSON can say and dataclasses of it; the order of a mapping's keys does not count.

    >>> digest_of({"b": 1, "a": (2.5,)}) == digest_of({"a": [2.5], "b": 1})
    True
    """
    if isinstance(value, str):
        value = value.encode("utf-8")
    elif not isinstance(value, bytes):
        plain = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
        value = plain.encode("utf-8")
    return hashlib.sha256(value).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bad_format(path: Path, schema: Schema, why: str) -> ArtifactFormatError:
    """Return the error for a file that is no whole file of its kind."""
    return ArtifactFormatError(
        f"{path}: not a {schema.kind} file of MixDQ, or a damaged one: {why}. Make it again with `{schema.made_by}`."
    )


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"no digest of a {type(value).__name__}")


def _short(digest: str | None) -> str:
    return "unknown" if digest is None else digest[:12]
