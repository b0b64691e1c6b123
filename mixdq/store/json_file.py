"""JSON files with a schema line, and the checked way from plain values to the types of `mixdq.types`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mixdq.store.artifact import Schema, atomic_write, bad_format, check_schema, read_text

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class JsonArtifact:
    """A JSON file: its content, and what it was made from, name -> digest."""

    content: dict[str, Any]
    origin: dict[str, str]


def write_json(path: Path, schema: Schema, content: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    """Write `content` as JSON beneath its schema and origin; one line a key, one line an element of a list.

    Infinity is written as Python's JSON does; NaN raises ValueError, for `read_json` would refuse it.
    """
    document = {"schema": str(schema), "origin": dict(origin), **content}
    if len(document) != 2 + len(content):
        raise ValueError("content must not have keys called schema or origin")
    text = "{\n" + ",\n".join(f" {json.dumps(key)}: {_lines(value)}" for key, value in document.items()) + "\n}\n"
    json.loads(text, parse_constant=_constant)
    atomic_write(path, text.encode("utf-8"))


def read_json(path: Path, schema: Schema) -> JsonArtifact:
    """Return the file's content and origin; ArtifactError where it is missing, foreign, damaged or newer."""
    document = parse_json(path, schema, read_text(path, schema))
    if not isinstance(document, dict):
        raise bad_format(path, schema, "it holds no object")
    check_schema(path, document.pop("schema", None), schema)
    origin = decode(path, schema, dict[str, str], document.pop("origin", None))
    return JsonArtifact(content=document, origin=origin)


def parse_json(path: Path, schema: Schema, text: str) -> Any:
    """Return the parsed text; ArtifactFormatError where it is not JSON, holds NaN, or is nested without end."""
    try:
        return json.loads(text, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise bad_format(path, schema, str(error)) from error


def encode(kind: type[T], value: T) -> Any:
    """Return a value of `mixdq.types` as plain dicts, lists, strings and numbers; None fields are left out."""
    return TypeAdapter(kind).dump_python(value, mode="json", exclude_none=True)


def decode(path: Path, schema: Schema, kind: type[T], value: object) -> T:
    """Return plain values as `kind`, with its own checks; every other key, type or value is an ArtifactFormatError."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value, default=str), strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the file"
        raise bad_format(path, schema, f"{where}: {first['msg']}, found {first['input']!r:.60}") from error
    except (ValueError, RecursionError) as error:
        raise bad_format(path, schema, str(error)) from error


def _lines(value: Any) -> str:
    if isinstance(value, list | tuple) and value:
        return "[\n  " + ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n ]"
    return json.dumps(value, ensure_ascii=False)


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("a value is NaN")
    return float(name)
