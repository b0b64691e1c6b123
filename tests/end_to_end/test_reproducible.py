"""One seed, one result, wherever the model lies; another seed, another."""

import json
import shutil

import pytest


@pytest.fixture(scope="module")
def again(tmp_path_factory, models, mixdq, begin):
    root = tmp_path_factory.mktemp("again")
    folder, model = root / "run", root / "moved"
    shutil.copytree(models["sdxl"], model)
    begin(folder, model)
    for verb in ("inspect", "calibrate", "sensitivity", "allocate", "choose", "apply"):
        done = mixdq(verb, *([model, "-o"] if verb == "inspect" else []), folder)
        assert done.exit_code == 0, done.stderr
    return folder


FILES = ("calibration.safetensors", "sensitivity.csv", "plan.toml", "receipt.json")


@pytest.mark.parametrize("name", FILES)
def test_verb_by_verb_or_at_once_one_seed_gives_the_same_bytes(again, finished, name) -> None:
    assert (again / name).read_bytes() == (finished / name).read_bytes()


def test_layers_differ_in_nothing_but_where_the_model_lies(again, finished) -> None:
    one, other = (json.loads((folder / "layers.json").read_text(encoding="utf-8")) for folder in (again, finished))
    assert one["layers"] == other["layers"]
    assert one["digest"] == other["digest"]


def test_plans_of_a_sweep_are_the_same_bytes(again, finished) -> None:
    plans = sorted(path.name for path in (finished / "plans").iterdir())
    assert plans == sorted(path.name for path in (again / "plans").iterdir())
    for name in plans:
        assert (again / "plans" / name).read_bytes() == (finished / "plans" / name).read_bytes()


def test_saved_weights_are_the_same_bytes(again, finished) -> None:
    files = sorted((finished / "model").rglob("*.safetensors"))
    assert files
    for path in files:
        assert (again / path.relative_to(finished)).read_bytes() == path.read_bytes()


def test_another_seed_gives_other_ranges(tmp_path, models, mixdq, begin, finished) -> None:
    folder = tmp_path / "run"
    begin(folder, models["sdxl"])
    assert mixdq("inspect", models["sdxl"], "-o", folder, "--seed", 1).exit_code == 0
    assert mixdq("calibrate", folder).exit_code == 0
    name = "calibration.safetensors"
    assert (folder / name).read_bytes() != (finished / name).read_bytes()
