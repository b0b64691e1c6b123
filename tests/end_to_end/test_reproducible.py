"""One seed, one result; another seed, another."""

import pytest


@pytest.fixture(scope="module")
def again(tmp_path_factory, models, mixdq, begin):
    folder = tmp_path_factory.mktemp("again") / "run"
    begin(folder, models["sdxl"])
    for verb in ("inspect", "calibrate", "sensitivity", "allocate", "choose", "apply"):
        done = mixdq(verb, *([models["sdxl"], "-o"] if verb == "inspect" else []), folder)
        assert done.exit_code == 0, done.stderr
    return folder


FILES = ("layers.json", "calibration.safetensors", "sensitivity.csv", "plan.toml", "receipt.json")


@pytest.mark.parametrize("name", FILES)
def test_verb_by_verb_or_at_once_one_seed_gives_the_same_bytes(again, finished, name) -> None:
    assert (again / name).read_bytes() == (finished / name).read_bytes()


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
