"""Every version opens what earlier ones saved; see `golden/make.py`."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from mixdq.integrations.checksums import CHECKSUMS
from mixdq.metrics.sqnr import sqnr

FOLDER = Path(__file__).parent / "golden"
MODELS = sorted(path.parent for path in FOLDER.glob("v*/*/unet"))
MADE = runpy.run_path(str(FOLDER / "make.py"))
MOST_BYTES = 600 * 2**10


@pytest.fixture(params=MODELS, ids=lambda path: f"{path.parent.name} {path.name}")
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def unet(folder: Path) -> Any:
    return UNet2DConditionModel.from_pretrained(folder / "unet")


def test_codes_and_weights_are_those_that_were_saved(folder: Path, unet: Any) -> None:
    assert MADE["layers_of"](unet) == json.loads((folder / "layers.json").read_text())


def test_every_tensor_is_as_in_the_files(folder: Path, unet: Any) -> None:
    files = (folder / "unet").glob("*.safetensors")
    saved = {name: tensor for file in files for name, tensor in load_file(file).items()}
    state = unet.state_dict()
    assert saved.keys() == state.keys() | {*CHECKSUMS}
    for name, tensor in state.items():
        assert torch.equal(tensor, saved[name].reshape(tensor.shape).to(tensor.dtype)), name


def test_the_answer_is_the_same(folder: Path, unet: Any) -> None:
    asked = load_file(folder / "answer.safetensors")
    expected = asked.pop("answer")
    # Sums in another order come to 140 dB (processors without AVX2, inputs an ulp off); the least change of one code
    # of a weight comes to 20 dB in half of the layers.
    assert sqnr(expected, MADE["answer"](unet, asked)) > 60


def test_what_can_be_saved_is_among_them() -> None:
    """Bits of all kinds, BOS rows, joined inputs, zero points, inputs scaled by calibration or at run time, shards."""
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= MOST_BYTES
    names = {name for folder in MODELS for file in folder.rglob("unet/*.safetensors") for name in load_file(file)}
    kinds = {name.rpartition(".")[2] for name in names}
    assert {"weight_scale", "weight_zero_point", "input_scale", "input_zero_point", "bos_input", "bos_output"} <= kinds
    configs = [json.loads((folder / "unet" / "config.json").read_text())["quantization_config"] for folder in MODELS]
    widths = {bits for config in configs for bits in config["plan"]["layers"].values()}
    assert {"W8A8", "W4A8", "W2A16", "W16A16", "W8A8 float"} <= widths
    assert {config.get("activations", "static") for config in configs} == {"static", "dynamic"}
    assert all(config["input_splits"] and config["bos_layers"] for config in configs)
    assert any((folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").exists() for folder in MODELS)
