"""The commands of docs/gpu.md that measure are ones that the benchmarks take, and its suites exist."""

import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def commands() -> list[list[str]]:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").partition("## To measure")[2]
    block = text.partition("```bash")[2].partition("```")[0].replace("\\\n", " ")
    return [words[2:] for line in block.splitlines() if (words := shlex.split(line, comments=True))]


def test_every_measuring_command_gets_as_far_as_asking_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = [words for words in commands() if words[0].startswith("benchmarks.")]
    assert len(asked) > 10
    for module, *words in asked:
        if "--layers" in words:
            # Another command writes it.
            at = words.index("--layers")
            del words[at : at + 2]
        with pytest.raises(SystemExit, match="no CUDA device here"):
            import_module(module).main(words)


def test_its_suites_exist() -> None:
    (words,) = (words for words in commands() if words[0] == "pytest")
    for word in words[3:]:
        head, brace, rest = word.partition("{")
        names, _, tail = rest.partition("}")
        for name in names.split(",") if brace else [""]:
            assert (ROOT / f"{head}{name}{tail}").exists(), f"{head}{name}{tail}"
