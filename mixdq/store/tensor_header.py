"""What a safetensors file of ours says of itself: JSON under the single metadata key "mixdq".

One key, because safetensors writes several in no fixed order. Needs no torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixdq.store.artifact import Schema, bad_format, check_schema
from mixdq.store.json_file import decode, parse_json


def tensor_header(schema: Schema, content: Mapping[str, Any], origin: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of a file: its schema, what it was made from, and `content`."""
    return {"mixdq": json.dumps({"schema": str(schema), "origin": dict(origin), **content})}


def read_tensor_header(path: Path, data: bytes, schema: Schema) -> tuple[dict[str, Any], dict[str, str]]:
    """Return content and origin of a file's bytes; ArtifactFormatError where it is foreign, damaged or newer."""
    # Eight bytes of length, then JSON, as safetensors lays it out.
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise bad_format(path, schema, "it is truncated")
    try:
        text = data[8 : 8 + length].decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad_format(path, schema, "its header is not text") from error
    outer = parse_json(path, schema, text)
    metadata = outer.get("__metadata__") if isinstance(outer, dict) else None
    inner = metadata.get("mixdq") if isinstance(metadata, dict) else None
    header = parse_json(path, schema, inner) if isinstance(inner, str) else None
    if not isinstance(header, dict):
        raise bad_format(path, schema, "it has no header of MixDQ")
    check_schema(path, header.pop("schema", None), schema)
    return header, decode(path, schema, dict[str, str], header.pop("origin", None))
