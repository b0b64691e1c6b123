"""latency.json: milliseconds of every layer at every pair of widths, a line a layer, with the machine's facts."""

from pathlib import Path

from mixdq.store.artifact import Schema, bad_format
from mixdq.store.json_file import decode, encode, read_json, write_json
from mixdq.types.latency import LatencyTable

LATENCY = Schema("latency", "mixdq benchmark")


def write_latency(path: Path, table: LatencyTable) -> None:
    """Write the table, atomically."""
    content = encode(LatencyTable, table)
    origin = content.pop("origin")
    write_json(path, LATENCY, {**content, "layers": list(content["layers"].items())}, origin)


def read_latency(path: Path) -> LatencyTable:
    """Return the table of a file; ArtifactError where it is missing, foreign, damaged or newer."""
    artifact = read_json(path, LATENCY)
    layers = dict(decode(path, LATENCY, list[tuple[str, dict[str, float]]], artifact.content.get("layers")))
    if "origin" in artifact.content:
        raise bad_format(path, LATENCY, "unknown key 'origin'")
    return decode(path, LATENCY, LatencyTable, {**artifact.content, "layers": layers, "origin": artifact.origin})
