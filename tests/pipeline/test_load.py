import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.utils import logging as diffusers_logging

from mixdq.errors import UnsupportedModelError
from mixdq.pipeline import load
from mixdq.pipeline.load import load_pipeline
from mixdq.testing import tiny_sdxl_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_sdxl_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(model, tmp_path / "broken"))


def test_a_folder_opens_as_it_was_saved(model: Path) -> None:
    for given in (model, str(model)):
        pipe = load_pipeline(given)
        for name, weight in tiny_sdxl_pipeline().unet.state_dict().items():
            assert torch.equal(weight, pipe.unet.state_dict()[name])


def test_the_dtype_is_the_one_asked_for(model: Path) -> None:
    assert load_pipeline(model, dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_a_loaded_pipeline_comes_back_untouched() -> None:
    pipe = tiny_sdxl_pipeline()
    assert load_pipeline(pipe, dtype=torch.float16) is pipe
    assert pipe.unet.dtype == torch.float32


def test_loading_leaves_the_libraries_progress_bars_as_they_were(model: Path) -> None:
    diffusers_logging.enable_progress_bar()
    load_pipeline(model)
    assert diffusers_logging.is_progress_bar_enabled()


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def pickle_only(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        torch.save({}, file.with_suffix(".bin"))
        file.unlink()


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda m: halve(m / "unet/diffusion_pytorch_model.safetensors"), "truncated or damaged"),
        (lambda m: halve(m / "text_encoder_2/model.safetensors"), "truncated or damaged"),
        (lambda m: (m / "vae/diffusion_pytorch_model.safetensors").write_bytes(b""), "truncated or damaged"),
        (lambda m: (m / "unet/diffusion_pytorch_model.safetensors").unlink(), "no file named"),
        (lambda m: pickle_only(m / "unet"), r"pickled weights only \(diffusion_pytorch_model.bin\)"),
        (lambda m: pickle_only(m / "text_encoder"), r"pickled weights only \(model.bin\)"),
        (lambda m: shutil.rmtree(m / "vae"), "its folder vae/ is missing"),
        (lambda m: (m / "model_index.json").unlink(), "holds no model_index.json"),
        (lambda m: (m / "model_index.json").write_text("{"), "not a JSON file"),
        (lambda m: (m / "model_index.json").write_text("[]"), "names no pipeline class"),
        (lambda m: edit(m / "model_index.json", _class_name=["pipeline.py", "Mine"]), "names no pipeline class"),
        (lambda m: edit(m / "model_index.json", _class_name="NoSuchPipeline"), "NoSuchPipeline"),
        (lambda m: (m / "unet/config.json").write_text("{"), "not a valid JSON file"),
        (lambda m: edit(m / "unet/config.json", block_out_channels=[16, 48]), "expected shape"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line_that_names_it(
    broken: Path, damage: Callable[[Path], object], complaint: str
) -> None:
    damage(broken)
    with pytest.raises(UnsupportedModelError, match=complaint) as caught:
        load_pipeline(broken)
    text = str(caught.value)
    assert str(broken) in text
    assert "\n" not in text


def test_code_that_a_model_brings_along_is_never_run(broken: Path) -> None:
    ran = broken / "ran"
    (broken / "unet" / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own:\n    pass\n")
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps({**index, "unet": ["own", "Own"]}))
    with pytest.raises(UnsupportedModelError):
        load_pipeline(broken)
    (broken / "pipeline.py").write_text((broken / "unet" / "own.py").read_text())
    (broken / "model_index.json").write_text(json.dumps({**index, "_class_name": ["pipeline", "Own"]}))
    with pytest.raises(UnsupportedModelError):
        load_pipeline(broken)
    assert not ran.exists()


def test_pickled_weights_are_never_opened(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pickle_only(broken / "unet")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(UnsupportedModelError):
        load_pipeline(broken)


def test_what_is_no_folder_and_no_hub_id_is_refused(tmp_path: Path) -> None:
    for name in (str(tmp_path / "none"), "./none", "no such model", "../owner/model"):
        with pytest.raises(UnsupportedModelError, match="no such folder"):
            load_pipeline(name)


def test_errors_of_the_system_stay_what_they_are(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load.DiffusionPipeline, "from_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        load_pipeline(model)
