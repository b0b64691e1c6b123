import pytest

from mixdq.errors import ArtifactError, StaleArtifactError
from mixdq.store.objective_file import ObjectiveFile, read_objective, write_objective
from mixdq.workflow import objective, planning, steps
from mixdq.workflow.settings import with_budget


@pytest.fixture
def fitting(run):
    """A run that is to be fitted on few plans."""
    allocation = run.config.allocation.model_copy(update={"fit_plans": 8})
    run.config = with_budget(
        run.config.model_copy(update={"allocation": allocation}), program="joint", objective="calibrated"
    )
    return run


def test_an_interrupted_fit_goes_on_and_ends_with_the_same_bytes(fitting, monkeypatch) -> None:
    path = fitting.paths.root / "objective.json"
    steps.fit(fitting)
    whole, done = path.read_bytes(), read_objective(path)
    assert len(done.errors) == done.model.plans == 8
    path.unlink()

    def three(*args, **kwargs):
        for number, pair in enumerate(score_plans(*args, **kwargs)):
            if number == 3:
                raise KeyboardInterrupt
            yield pair

    score_plans = objective.score_plans
    monkeypatch.setattr(objective, "score_plans", three)
    with pytest.raises(KeyboardInterrupt):
        steps.fit(fitting)
    half = read_objective(path)
    assert list(half.errors.items()) == list(done.errors.items())[:3]
    with pytest.raises(ArtifactError, match=r"only 3 plans are measured; `mixdq fit .*` goes on"):
        planning.allocate(fitting)
    monkeypatch.undo()
    steps.fit(fitting)
    assert path.read_bytes() == whole


def test_plans_are_made_with_what_was_fitted_and_stale_without(fitting) -> None:
    with pytest.raises(ArtifactError, match=f"`mixdq fit {fitting.paths.root}` makes it"):
        planning.allocate(fitting)
    model = steps.fit(fitting)
    (plan,) = planning.allocate(fitting)
    assert plan.solver.objective == "calibrated"
    path = fitting.paths.root / "objective.json"
    before = read_objective(path)
    other = {group: {role: 2.0 * weight for role, weight in roles.items()} for group, roles in model.weights.items()}
    changed = type(model)(weights=other, plans=8, correlation=0.5)
    write_objective(path, ObjectiveFile(errors=before.errors, model=changed, origin=before.origin))
    (again,) = planning.allocate(fitting)
    assert again.solver.values["loss"] == pytest.approx(2.0 * plan.solver.values["loss"])
    assert again.layers == plan.layers


def test_a_fit_of_other_settings_is_not_gone_on_with(fitting) -> None:
    path = fitting.paths.root / "objective.json"
    steps.fit(fitting)
    before = path.read_bytes()
    assert planning.allocate(fitting)
    conversion = fitting.config.conversion.model_copy(update={"rounding": "nearest"})
    allocation = fitting.config.allocation.model_copy(update={"fit_plans": 9})
    fitting.config = fitting.config.model_copy(update={"allocation": allocation, "conversion": conversion})
    with pytest.raises(StaleArtifactError, match=f"fit was .*`mixdq fit {fitting.paths.root}`"):
        planning.allocate(fitting)
    steps.fit(fitting)
    assert len(read_objective(path).errors) == 9
    assert path.with_name("objective.old1.json").read_bytes() == before
    assert planning.allocate(fitting)
    # What plans are judged on is no setting of allocation, and decides the fit all the same.
    selection = fitting.config.selection.model_copy(update={"num_prompts": 2})
    fitting.config = fitting.config.model_copy(update={"selection": selection})
    with pytest.raises(StaleArtifactError, match="fit was"):
        planning.allocate(fitting)


def test_everything_asked_for_fits_and_times_what_the_budget_needs(fitting) -> None:
    allocation = fitting.config.allocation.model_copy(
        update={"latency_ms": 1e6, "weight_bits": None, "activation_bits": 16.0}
    )
    fitting.config = fitting.config.model_copy(update={"allocation": allocation})
    fitting.everything = True
    plan = steps.choose(fitting)
    assert (fitting.paths.root / "objective.json").exists()
    assert plan.solver.values["latency_ms"] < 1e6
    assert {"objective", "latency"} <= plan.origin.keys()
