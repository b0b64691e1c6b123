"""The fuzzer runs in its smallest size, does the same damage twice, and finds nothing wrong."""

import json
import shutil
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "integrations" / "golden" / "v1" / "sd"


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of `benchmarks`, which is no part of the installed package."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: import_module(f"benchmarks.{name}")


def test_every_kind_of_damage_is_done_and_nothing_wrong_comes_out(benchmark_module: Any, tmp_path: Path) -> None:
    benchmark_module("fuzz").main(["--smoke", "--json", str(tmp_path / "out.json")])
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["wrong"] == []
    assert sum(row["count"] for row in written["rows"]) == written["cases"]
    assert len({(row["source"], row["mutation"]) for row in written["rows"]}) == written["cases"]
    assert any(row["verdict"] == "refused by MixDQ" for row in written["rows"])


def spoilt(mutation: Any, seed: int, folder: Path) -> tuple[str, dict[str, bytes]]:
    for name in ("model", "other"):
        shutil.copytree(GOLDEN / "unet", folder / name)
    said = mutation(Random(seed), folder / "model")
    return said, {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


@pytest.mark.parametrize(
    "name",
    [
        "config_bytes",
        "index_bytes",
        "header_bytes",
        "tensor_bytes",
        "quantization_config",
        "header_values",
        "index_values",
    ],
)
def test_damage_is_done_to_one_file_and_the_same_by_the_same_seed(
    benchmark_module: Any, name: str, tmp_path: Path
) -> None:
    mutation = getattr(benchmark_module("mutations"), name)
    whole = {path.name: path.read_bytes() for path in (GOLDEN / "unet").iterdir()}
    for seed in range(5):
        said, first = spoilt(mutation, seed, tmp_path / f"{seed}")
        assert said
        assert spoilt(mutation, seed, tmp_path / f"{seed} again") == (said, first)
        assert sum(first[file] != whole[file] for file in whole) <= 1
