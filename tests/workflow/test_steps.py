import math

import pytest

from mixdq.errors import ArtifactError, ConfigError, StaleArtifactError
from mixdq.pipeline.layers import weights_digest
from mixdq.store.table_file import read_sensitivity
from mixdq.testing import fingerprint
from mixdq.workflow import denoiser, measuring, planning, steps
from mixdq.workflow.session import Session


def changed(run: Session, section: str, **values: object) -> Session:
    part = getattr(run.config, section).model_copy(update=values)
    return Session(run.paths.root, run.config.model_copy(update={section: part}))


STEPS = {
    "inspect": (lambda session: steps.inspect(session, own=False), "layers.json", "mixdq inspect .* -o"),
    "calibrate": (lambda session: steps.calibrate(session, own=False), "calibration.safetensors", "mixdq calibrate"),
    "choose": (lambda session: steps.choose(session, own=False), "plan.toml", "mixdq choose"),
    "apply": (lambda session: steps.apply(session, own=False), "receipt.json", "mixdq apply"),
    "evaluate": (lambda session: steps.evaluate(session, own=False), "evaluation.json", "mixdq evaluate"),
}

STALE = {
    "inspect": ("generation", {"height": 32}, "size was"),
    "calibrate": ("calibration", {"estimator": "minmax"}, "settings was"),
    "choose": ("selection", {"metric": "psnr"}, "selection was"),
    "apply": ("conversion", {"symmetric": True, "backend": "reference"}, "conversion was"),
    "evaluate": ("evaluation", {"metrics": ("ssim",)}, "settings was"),
}


@pytest.mark.parametrize("name", STEPS)
def test_step_that_was_not_asked_for_is_read_from_its_file(run, name) -> None:
    step, _, _ = STEPS[name]
    before = {path: path.stat().st_mtime_ns for path in run.paths.root.rglob("*")}
    assert step(run)
    assert {path: path.stat().st_mtime_ns for path in run.paths.root.rglob("*")} == before
    assert "_loaded" not in vars(run)


@pytest.mark.parametrize("name", STEPS)
def test_missing_file_says_what_to_run(run, name) -> None:
    step, file, command = STEPS[name]
    (run.paths.root / file).unlink()
    with pytest.raises(ArtifactError, match=f"{file}: there is no such file; `{command} {run.paths.root}` makes it"):
        step(run)


@pytest.mark.parametrize("name", STEPS)
def test_file_made_from_other_settings_says_what_to_run(run, name) -> None:
    step, file, command = STEPS[name]
    section, values, says = STALE[name]
    with pytest.raises(StaleArtifactError, match=f"{file}: .*{says}.*`{command} {run.paths.root}`"):
        step(changed(run, section, **values))


def test_borrowing_steps_return_the_model_as_it_was(run) -> None:
    pipe = run.pipe
    before, digest = fingerprint(pipe.unet), weights_digest(pipe.unet)
    for path in (run.paths.layers, run.paths.calibration, run.paths.sensitivity, run.paths.plan):
        path.unlink()
    session = Session.start(run.paths.root, run.config, pipe=pipe)
    steps.choose(session)
    assert fingerprint(pipe.unet) == before
    assert weights_digest(pipe.unet) == digest
    assert not session.converted


def test_dynamic_activations_are_measured_chosen_and_converted(run, monkeypatch) -> None:
    told = []

    def listened_to(name, whole):
        def kept(*arguments, **options):
            told.append((name, options["activations"]))
            return whole(*arguments, **options)

        return kept

    for module, name in (
        (measuring.sensitivity, "measure"),
        (steps.selection, "choose"),
        (denoiser, "convert"),
    ):
        monkeypatch.setattr(module, name, listened_to(name, getattr(module, name)))
    steps.apply(Session.start(run.paths.root, changed(run, "conversion", activations="dynamic").config))
    assert told == [("measure", "dynamic"), ("choose", "dynamic"), ("convert", "dynamic")]


def test_table_of_other_inputs_is_kept_under_another_name(run) -> None:
    whole = run.paths.sensitivity.read_bytes()
    session = changed(run, "sensitivity", ssim_window=7)
    table = steps.measure(session)
    assert run.paths.sensitivity.with_name("sensitivity.old1.csv").read_bytes() == whole
    assert set(read_sensitivity(run.paths.sensitivity).scores) == set(table.scores)


def test_more_metrics_add_rows_and_keep_those_there_are(run) -> None:
    whole = run.paths.sensitivity.read_bytes()
    both = {"content": ("ssim", "sqnr"), "quality": ("sqnr",)}
    table = steps.measure(run, metric_of=both)
    assert run.paths.sensitivity.read_bytes().startswith(whole)
    assert len(table.scores) > whole.count(b"\n") - 3
    again = steps.measure(run).scores
    assert again == tuple(score for score in table.scores if score in again)


def test_pattern_that_matches_nothing_is_refused_by_the_first_step(run) -> None:
    with pytest.raises(ConfigError, match=r"allocation.keep: the pattern 'conv_inn'"):
        steps.inspect(changed(run, "allocation", keep=("conv_inn",)))


def test_all_steps_again_do_nothing_again(run) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.paths.root.rglob("*.*") if "report" not in path.name}
    session = Session.start(run.paths.root, run.config)
    evaluations, report = steps.run(session)
    assert [one.method for one in evaluations] == ["float", "mixdq"]
    assert report.name == "report.html"
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in after if after[path] != before[path]} <= set((run.paths.root / "plots").rglob("*"))
    assert "_loaded" not in vars(session)


def test_hybrid_begins_a_table_of_estimates_that_is_found_up_to_date_without_a_model(run) -> None:
    exact = steps.measure(changed(run, "sensitivity", method="exact"))
    # As good as any; nothing is estimated that has been measured.
    assert steps.measure(run) == exact
    assert planning.allocate(run)
    run.paths.sensitivity.write_bytes(b"".join(run.paths.sensitivity.read_bytes().splitlines(keepends=True)[:-1]))
    hybrid = changed(run, "sensitivity", method="hybrid", tolerance=0.9, exact_share=0.1)
    with pytest.raises(StaleArtifactError, match="mixdq sensitivity"):
        planning.allocate(hybrid)
    table = steps.measure(hybrid)
    assert [score.key for score in table.scores] == [score.key for score in exact.scores]
    measured = [score for score in table.scores if score.stderr is None]
    assert len(measured) == math.ceil(0.1 * len(table.scores))
    assert set(measured) <= set(exact.scores)
    # The exact one, which is not whole and cannot be gone on with, is kept.
    assert read_sensitivity(run.paths.sensitivity.with_name("sensitivity.old2.csv")).scores == exact.scores[:-1]
    again = Session(run.paths.root, hybrid.config)
    assert steps.measure(again).scores == table.scores
    assert "_loaded" not in vars(again)
    assert planning.allocate(again)
    # More memory or less is the same table.
    assert steps.measure(changed(again, "sensitivity", checkpointing=True)).scores == table.scores
