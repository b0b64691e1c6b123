from dataclasses import replace

import numpy as np
import pytest

from mixdq.errors import ArtifactError, ConfigError, InfeasibleBudgetError, StaleArtifactError
from mixdq.store.artifact import digest_of_file
from mixdq.store.plan_file import read_plan
from mixdq.store.sketch_file import SketchLog
from mixdq.store.table_file import read_sensitivity, write_sensitivity
from mixdq.workflow import origins, planning, steps
from mixdq.workflow.settings import with_budget, with_engine


def test_plans_on_file_are_read_while_table_and_budget_are_the_same(run) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.paths.plans.iterdir()}
    plans = planning.allocate(run, own=False)
    assert [f"{plan.name}.toml" for plan in plans] == sorted(before)
    assert {path.name: path.stat().st_mtime_ns for path in run.paths.plans.iterdir()} == before


def test_another_budget_replaces_every_plan(run) -> None:
    run.config = with_budget(run.config, weight_bits=7)
    with pytest.raises(StaleArtifactError, match="mixdq allocate"):
        planning.allocate(run, own=False)
    plans = planning.allocate(run)
    assert {read_plan(path).budget.weight_bits for path in run.paths.plans.iterdir()} == {7.0}
    assert len(plans) == len(list(run.paths.plans.iterdir()))
    assert planning.allocate(run, own=False) == plans


def test_budget_out_of_reach_leaves_the_plans_as_they_were(run) -> None:
    before = {path: path.read_bytes() for path in run.paths.plans.iterdir()}
    run.config = with_budget(run.config, weight_bits=2)
    with pytest.raises(InfeasibleBudgetError):
        planning.allocate(run)
    assert {path: path.read_bytes() for path in run.paths.plans.iterdir()} == before


def test_failure_in_the_middle_of_the_plans_leaves_the_old_ones(run, monkeypatch) -> None:
    before = {path: path.read_bytes() for path in run.paths.plans.iterdir()}
    write, written = planning.write_plan, []

    def full(path, plan) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(path)
        write(path, plan)

    monkeypatch.setattr(planning, "write_plan", full)
    run.config = with_budget(run.config, weight_bits=7)
    with pytest.raises(OSError, match="No space"):
        planning.allocate(run)
    assert {path: path.read_bytes() for path in run.paths.plans.iterdir()} == before
    assert not [path for path in run.paths.root.iterdir() if path.name.startswith(".")]


def test_missing_table_names_the_verb(run) -> None:
    run.paths.sensitivity.unlink()
    with pytest.raises(ArtifactError, match=f"`mixdq sensitivity {run.paths.root}` makes it"):
        planning.allocate(run)


def test_table_that_is_not_done_is_not_allocated_from(run) -> None:
    lines = run.paths.sensitivity.read_bytes().splitlines(keepends=True)
    run.paths.sensitivity.write_bytes(b"".join(lines[:-5]))
    with pytest.raises(ArtifactError, match=f"interrupted.*; `mixdq sensitivity {run.paths.root}` goes on"):
        planning.allocate(run)


def test_fewer_widths_need_nothing_more_than_was_measured_for_all(run) -> None:
    before = run.paths.sensitivity.read_bytes()
    narrow = {"weight_bits": 8.0, "weight_choices": {"content": (8,), "quality": (8,)}}
    run.config = run.config.model_copy(update={"allocation": run.config.allocation.model_copy(update=narrow)})
    (plan, *_) = planning.allocate(run)
    assert {bits.weight for bits in plan.layers.values()} == {8}
    assert run.paths.sensitivity.read_bytes() == before


def test_two_tables_are_all_that_allocation_needs(run) -> None:
    run.paths.calibration.unlink()
    run.config = with_budget(run.config, weight_bits=6)
    assert planning.allocate(run)


def test_a_table_measured_with_static_activations_is_stale_for_dynamic_ones(run) -> None:
    conversion = run.config.conversion.model_copy(update={"activations": "dynamic"})
    run.config = run.config.model_copy(update={"conversion": conversion})
    with pytest.raises(StaleArtifactError, match=r"sensitivity\.csv: .*settings was.*mixdq sensitivity"):
        planning.allocate(run)


def test_no_file_depends_on_the_engine(run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.paths.root.rglob("*")}
    run.config, run.everything = with_engine(run.config, engine="ray", address="127.0.0.1:1"), True
    steps.choose(run)
    assert {path: path.stat().st_mtime_ns for path in run.paths.root.rglob("*")} == before


def test_empty_folder_of_plans_names_the_verb(tmp_path) -> None:
    with pytest.raises(ArtifactError, match="no plans in it; `mixdq allocate"):
        planning.read_plans(tmp_path)


@pytest.fixture
def paired(run):
    """A run whose joint program takes pairs into account: all errors of a metric push the same way."""
    exact = read_sensitivity(run.paths.sensitivity)
    joint = run.config.allocation.model_copy(update={"program": "joint", "pairs": 9})
    sketched = run.config.sensitivity.model_copy(update={"method": "sketch"})
    run.config = run.config.model_copy(update={"allocation": joint, "sensitivity": sketched})
    write_sensitivity(run.paths.sensitivity, replace(exact, origin=origins.sensitivity_origin(run)))
    columns = {
        metric: tuple((s.layer, s.role, s.num_bits) for s in exact.scores if s.metric == metric)
        for metric in ("sqnr", "ssim")
    }
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=16)
    SketchLog.open(run.paths.root / planning.SKETCH, columns, origins.sketch_origin(run, columns)).update(
        {
            (metric, 0, number): sign * 2.0 ** -np.array([[bits for _, _, bits in of_metric]])
            for metric, of_metric in columns.items()
            for number, sign in enumerate(signs)
        }
    )
    return run


def test_plans_know_of_the_pairs_that_are_asked_for(paired) -> None:
    (plan,) = planning.allocate(paired)
    assert plan.origin["sketch"] == digest_of_file(paired.paths.root / planning.SKETCH)
    assert plan.solver.values["pairs"] == 9
    assert planning.allocate(paired, own=False) == [plan]
    alone = paired.config.allocation.model_copy(update={"pairs": 0})
    paired.config = paired.config.model_copy(update={"allocation": alone})
    with pytest.raises(StaleArtifactError, match="mixdq allocate"):
        planning.allocate(paired, own=False)
    (other,) = planning.allocate(paired)
    # Errors that push the same way lose more together than each by itself.
    assert other.solver.values["loss"] < plan.solver.values["loss"]
    assert "sketch" not in other.origin


def test_pairs_without_their_vectors_are_refused_with_what_to_do(paired) -> None:
    path = paired.paths.root / planning.SKETCH
    vectors = path.read_bytes()
    path.unlink()
    table, kept = paired.paths.sensitivity, paired.paths.root / "sensitivity.old1.csv"
    command = f"mv {table} {kept} && mixdq sensitivity {paired.paths.root}"
    with pytest.raises(ArtifactError, match=rf"sketch\.safetensors: there is no such file; `{command}`"):
        planning.allocate(paired)
    SketchLog.open(path, {"ssim": (), "sqnr": ()}, {"prompts": "other"}).update({("sqnr", 0, 0): np.zeros((1, 0))})
    with pytest.raises(StaleArtifactError, match=r"sketch\.safetensors: .*prompts was other.*Run `mv .*mixdq sens"):
        planning.allocate(paired)
    path.write_bytes(vectors)
    exact = paired.config.sensitivity.model_copy(update={"method": "exact"})
    paired.config = paired.config.model_copy(update={"sensitivity": exact})
    with pytest.raises(ConfigError, match=r"pairs = 9 beside sensitivity\.method = 'exact'.*'hybrid' or 'sketch'"):
        planning.allocate(paired)
