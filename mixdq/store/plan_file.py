"""plan.toml: a plan for people to read and change, one line a layer.

    schema = "mixdq.plan/1"
    name = "W4A8-03"
    [origin]
    [budget]
    [solver]
    [layers]
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k" = "W4A8"

`budget` and `solver` are absent where a plan came without. Equal plans give equal bytes.
"""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from mixdq.store.artifact import Schema, atomic_write, bad_format, check_schema, read_text
from mixdq.store.json_file import decode, encode
from mixdq.types.plan import BitPlan, Budget, LayerBits, SolverFacts

PLAN = Schema("plan", "mixdq allocate")

_KEYS = {"schema", "name", "origin", "budget", "solver", "layers"}


def write_plan(path: Path, plan: BitPlan) -> None:
    """Write a plan, atomically."""
    atomic_write(path, dump_plan(plan).encode("utf-8"))


def read_plan(path: Path) -> BitPlan:
    """Return the plan of a file; ArtifactError where it is missing, foreign, damaged or newer."""
    return parse_plan(read_text(path, PLAN), path)


def dump_plan(plan: BitPlan) -> str:
    """Return a plan as TOML."""
    document: dict[str, Any] = {"schema": str(PLAN), "name": plan.name, "origin": dict(plan.origin)}
    if plan.budget is not None:
        document["budget"] = encode(Budget, plan.budget)
    if plan.solver is not None:
        document["solver"] = encode(SolverFacts, plan.solver)
    document["layers"] = {name: str(bits) for name, bits in plan.layers.items()}
    return tomli_w.dumps(document)


def parse_plan(text: str, path: Path) -> BitPlan:
    """Return the plan that `text` writes down; `path` is for error texts only."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_format(path, PLAN, str(error)) from error
    check_schema(path, document.get("schema"), PLAN)
    unknown = sorted(document.keys() - _KEYS)
    if unknown:
        raise bad_format(path, PLAN, f"unknown key {unknown[0]!r}")
    budget, solver = document.get("budget"), document.get("solver")
    written = decode(path, PLAN, dict[str, str], document.get("layers"))
    if not written:
        raise bad_format(path, PLAN, "it has no layers")
    layers: dict[str, LayerBits] = {}
    for name, bits in written.items():
        try:
            layers[name] = LayerBits.parse(bits)
        except ValueError as error:
            raise bad_format(path, PLAN, f"layers.{name}: {error}") from error
    return BitPlan(
        name=decode(path, PLAN, str, document.get("name")),
        layers=layers,
        budget=None if budget is None else decode(path, PLAN, Budget, budget),
        solver=None if solver is None else decode(path, PLAN, SolverFacts, solver),
        origin=decode(path, PLAN, dict[str, str], document.get("origin")),
    )
