import math

import pytest

from mixdq.errors import ArtifactError, ArtifactFormatError
from mixdq.store.json_file import decode
from mixdq.types.evaluation import Evaluation
from mixdq.workflow.reporting import EVALUATION, _warnings, encode_evaluation, environment, picture_path, report


def evaluation(clip_score: float | None) -> Evaluation:
    return Evaluation(
        name="a",
        method="mixdq",
        weight_bits=4.0,
        activation_bits=8.0,
        weight_bytes=10,
        ssim=1.0,
        psnr_db=math.inf,
        sqnr_db=20.0,
        clip_score=clip_score,
        seconds=0.5,
    )


@pytest.mark.parametrize("clip_score", [0.25, None])
def test_evaluation_comes_back_as_it_was(tmp_path, clip_score) -> None:
    written = encode_evaluation(evaluation(clip_score))
    assert decode(tmp_path, EVALUATION, Evaluation, written) == evaluation(clip_score)


def test_report_is_written_from_the_files_alone(run) -> None:
    (run.paths.root / "report.html").unlink()
    path = report(run)
    assert "_loaded" not in vars(run)
    page = path.read_text(encoding="utf-8")
    assert run.config.model.path in page
    assert "reference backend" not in page


def test_report_warns_of_seconds_that_the_slow_backend_took(run) -> None:
    conversion = run.config.conversion.model_copy(update={"backend": "reference"})
    run.config = run.config.model_copy(update={"conversion": conversion})
    (warning,) = _warnings(run)
    assert "reference backend" in warning


def test_report_does_without_a_choice(run) -> None:
    run.variant.choice.unlink()
    assert report(run).is_file()


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("images/float/manifest.json", "evaluate"),
        ("evaluation.json", "evaluate"),
        ("images/float/000.png", "evaluate"),
        ("images/quantized/001.png", "evaluate"),
    ],
)
def test_missing_file_is_named_with_its_verb(run, name, verb) -> None:
    path = run.paths.root / name
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{path}.*`mixdq {verb}"):
        report(run)


@pytest.mark.parametrize(
    ("name", "verb"), [("plan.toml", "choose"), ("receipt.json", "apply"), ("sensitivity.csv", "sensitivity")]
)
def test_damaged_file_is_named_with_the_verb_and_the_run(run, name, verb) -> None:
    (run.paths.root / name).write_bytes(b"foreign")
    with pytest.raises(ArtifactFormatError, match=f"{name}.*`mixdq {verb} {run.paths.root}`"):
        report(run)


def test_environment_is_known_without_importing_anything() -> None:
    assert {"torch", "diffusers", "python", "cores"} <= environment().keys()


def test_pictures_sort_by_name_as_by_number(tmp_path) -> None:
    paths = [picture_path(tmp_path, index) for index in (2, 10, 100)]
    assert sorted(paths) == paths
