import json
import shutil
from pathlib import Path

import pytest
import torch

from mixdq.errors import ArtifactError, ConfigError, NoBackendError, PlanError, StaleArtifactError
from mixdq.store.plan_file import read_plan, write_plan
from mixdq.store.record_file import read_record
from mixdq.testing import tiny_sd_pipeline, tiny_sdxl_pipeline
from mixdq.types.plan import BitPlan, LayerBits
from mixdq.workflow import reporting, steps
from mixdq.workflow.session import Session
from mixdq.workflow.settings import configured
from mixdq.workflow.transfer import apply_plan, write_named_plan


def save(folder: Path, pipe, *, noise: float = 0.0, spikes: float = 0.0) -> Path:
    """Save a fine-tune: `noise` in shares of each weight's deviation, `spikes` in shares of each row's greatest."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            if weight.ndim > 1:
                weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
                weight[:, 0] += spikes * weight.abs().amax()
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("tuned"), tiny_sdxl_pipeline(), noise=0.05)


@pytest.fixture
def begin(run, tmp_path):
    """The function that begins the run of another model with the settings of the plan's own."""

    def started(model: Path, **sections: dict[str, object]) -> Session:
        config = configured(tmp_path / "out", str(model), like=run.config)
        update = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
        return Session.start(tmp_path / "out", config.model_copy(update=update))

    return started


@pytest.fixture
def alone(run, tmp_path_factory) -> Path:
    """The plan away from its run."""
    return Path(shutil.copy(run.paths.plan, tmp_path_factory.mktemp("a") / "plan.toml"))


def kept(session: Session) -> dict[str, object]:
    return json.loads(session.paths.transfer.read_text())


def test_plan_on_its_own_model_gives_the_numbers_that_its_run_reports(run, begin, model) -> None:
    session = begin(model, selection={"num_prompts": 2})
    check, _ = apply_plan(session, run.paths.plan)
    assert check.own_run
    assert check.outcome == "holds"
    # The run's are of integer kernels, these of floating-point simulation, and pictures have 8 bits.
    assert check.measured.sqnr_db == pytest.approx(check.yardstick.sqnr_db, abs=0.2)
    assert check.measured.ssim == pytest.approx(check.yardstick.ssim, abs=0.005)
    assert check.strangers < 0.5


def test_plan_holds_on_a_fine_tune_and_the_run_goes_on_from_there(run, begin, tuned, monkeypatch) -> None:
    session = begin(tuned)
    check, receipt = apply_plan(session, run.paths.plan)
    assert check.outcome == kept(session)["verdict"] == "holds"
    assert kept(session)["text"] == check.text
    assert {layer.layer: layer.bits for layer in receipt.layers} == read_plan(run.paths.plan).layers
    # What depends on the weights is the new model's own.
    ours, theirs = read_record(session.paths.calibration), read_record(run.paths.calibration)
    assert ours.ranges != theirs.ranges
    assert any(not torch.equal(row, theirs.bos_outputs[name]) for name, row in ours.bos_outputs.items())
    again = Session.open(session.paths.root)
    # The check drew the first of the two pictures.
    assert steps.evaluate(again)[1].per_picture["sqnr"][0] == pytest.approx(check.measured.sqnr_db, abs=0.2)
    monkeypatch.setattr(reporting, "render", lambda facts, root: facts)
    assert [check.text in warning for warning in reporting.report(again).warnings] == [True]
    # Nothing is made twice.
    before = {path: path.stat().st_mtime_ns for path in session.paths.root.rglob("*") if path.is_file()}
    assert apply_plan(Session.start(session.paths.root, session.config), run.paths.plan)[0] == check
    assert steps.apply(Session.open(session.paths.root)) == receipt
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_plan_without_its_run_is_held_against_a_plain_one_of_as_many_bytes(begin, alone, tuned) -> None:
    names = read_plan(alone).layers
    write_plan(alone, BitPlan(name="even", layers=dict.fromkeys(names, LayerBits(weight=6, activation=8))))
    check, _ = apply_plan(begin(tuned), alone)
    # An even plan is the plain one itself.
    assert check.measured == check.yardstick
    assert (check.own_run, check.outcome) == (False, "holds")
    assert "a plain plan of as many bytes (uniform W6, A8): SQNR" in check.text


def test_plan_that_holds_less_well_is_carried_out_with_a_warning(run, begin, tmp_path, caplog) -> None:
    session = begin(save(tmp_path / "spiky", tiny_sdxl_pipeline(), spikes=1.0))
    check, _ = apply_plan(session, run.paths.plan)
    assert check.outcome == kept(session)["verdict"] == "holds less well", check.text
    assert "holds less well here; `mixdq quantize" in caplog.text
    assert session.paths.receipt.exists()


def test_plan_that_ruins_the_pictures_is_refused_until_forced(run, begin, alone, tuned) -> None:
    plan = read_plan(alone)
    write_plan(alone, BitPlan(name="coarse", layers=dict.fromkeys(plan.layers, LayerBits(weight=2, activation=2))))
    session = begin(tuned)
    with pytest.raises(PlanError, match=r"coarse ruins the pictures on .*Nothing was converted: .*--force"):
        apply_plan(session, alone)
    assert not session.paths.plan.exists()
    assert not session.variant.model.exists()
    checked = session.paths.transfer.stat().st_mtime_ns
    check, _ = apply_plan(session, alone, force=True)
    assert check.outcome == "ruins the pictures"
    assert session.variant.model.exists()
    assert session.paths.transfer.stat().st_mtime_ns == checked


def test_plan_of_another_architecture_is_refused_before_calibration(run, begin, tmp_path) -> None:
    session = begin(save(tmp_path / "sd", tiny_sd_pipeline()))
    with pytest.raises(PlanError, match="not for the architecture") as caught:
        apply_plan(session, run.paths.plan)
    text = "\n".join(caught.value.disagreements)
    assert "add_embedding.linear_1: the model has no such layer" in text
    assert "attn2.to_k: linear [32, 32], but linear [32, 64]" in text
    assert not session.paths.calibration.exists()


def test_forced_plan_leaves_layers_that_it_says_nothing_of_in_floating_point(run, begin, tmp_path, caplog) -> None:
    session = begin(save(tmp_path / "deep", tiny_sdxl_pipeline(layers_per_block=2)))
    check, receipt = apply_plan(session, run.paths.plan, force=True)
    plan = read_plan(run.paths.plan)
    new = [layer for layer in receipt.layers if layer.layer not in plan.layers]
    assert new
    assert {str(layer.bits) for layer in new} == {"W16A16"}
    assert f"{check.differences} layers differ" in check.text
    assert "not for the architecture" in caplog.text


def test_plan_without_a_layer_of_the_model_is_refused_even_forced(begin, alone, tuned) -> None:
    write_plan(alone, BitPlan(name="alien", layers={"transformer.0": LayerBits(weight=4, activation=8)}))
    with pytest.raises(PlanError) as caught:
        apply_plan(begin(tuned), alone, force=True)
    assert "transformer.0: the model has no such layer" in caught.value.disagreements


def test_interrupted_check_goes_on_from_the_calibration(run, begin, tuned) -> None:
    session = begin(tuned)

    def interrupt(done: int, total: int, what: str) -> None:
        if what.startswith("check: plan"):
            raise KeyboardInterrupt

    session.progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        apply_plan(session, run.paths.plan)
    assert not session.paths.transfer.exists()
    made = session.paths.calibration.stat().st_mtime_ns
    seen = []
    session.progress = lambda done, total, what: seen.append(what)
    check, _ = apply_plan(session, run.paths.plan)
    assert session.paths.calibration.stat().st_mtime_ns == made
    assert list(dict.fromkeys(seen)) == ["check: floating point", f"check: {check.plan}", "conversion"]


def test_carried_plan_is_stale_with_another_calibration_and_gives_way_to_a_choice(run, begin, tuned) -> None:
    session = begin(tuned)
    apply_plan(session, run.paths.plan)
    again = Session.open(session.paths.root)
    again.change(
        again.config.model_copy(update={"calibration": again.config.calibration.model_copy(update={"num_prompts": 3})})
    )
    steps.calibrate(again)
    with pytest.raises(StaleArtifactError, match=r"plan\.toml: .*calibration was .*`mixdq apply --plan PLAN"):
        steps.apply(again)
    with pytest.raises(ArtifactError, match="mixdq sensitivity"):
        steps.choose(again)


def test_plan_of_the_run_itself_is_refused(run) -> None:
    with pytest.raises(ConfigError, match="the plan of this very run, which `mixdq apply"):
        apply_plan(run, run.paths.plan)


def test_a_plan_may_be_named_by_its_bits(begin, model) -> None:
    bits = LayerBits.parse("W8A8 float")
    session = begin(model, conversion={"backend": "reference"}, selection={"num_prompts": 1})
    path = write_named_plan(session, bits)
    check, receipt = apply_plan(session, path)
    assert check.against == "a plain plan of as many bytes (uniform W8, A8)"
    assert check.measured.sqnr_db > 15
    table = steps.inspect(session)
    assert {layer.layer: str(layer.bits) for layer in receipt.layers} == {
        spec.name: "W8A8 float" if spec.op == "linear" else "W8A8" for spec in table
    }
    # As when the same is asked again.
    assert apply_plan(Session.start(session.paths.root, session.config), write_named_plan(session, bits))[0] == check


def test_what_no_backend_runs_or_no_layer_takes_is_refused_before_any_long_work(begin, model) -> None:
    session = begin(model)
    path = write_named_plan(session, LayerBits.parse("W8A8 float"))
    with pytest.raises(NoBackendError, match="W8A8 float"):
        apply_plan(session, path)
    plan = read_plan(path)
    layers = {**plan.layers, "conv_in": LayerBits.parse("W8A8 float")}
    write_plan(path, BitPlan(name="wrong", layers=layers))
    session = begin(model, conversion={"backend": "reference"})
    with pytest.raises(PlanError, match="conv_in: W8A8 float is for Linear layers"):
        apply_plan(session, path)
    assert not session.paths.transfer.exists()
