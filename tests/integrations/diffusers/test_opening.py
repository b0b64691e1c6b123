import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from mixdq.errors import ArtifactFormatError, NonFiniteError, PlanError
from mixdq.integrations.checksums import CHECKSUMS
from mixdq.integrations.saved_format import FORMAT_VERSION
from mixdq.runtime.layer import QuantizedLayer

Paint = Callable[[DiffusionPipeline], torch.Tensor]


@pytest.fixture
def copied(quantized: Any, tmp_path: Path) -> Path:
    """A copy of the saved denoiser's folder, to be spoilt."""
    return Path(shutil.copytree(quantized.folder / "unet", tmp_path / "unet"))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _first(quantized: Any, width: str, *, bos: bool = False) -> str:
    bos_layers = quantized.pipe.unet.hf_quantizer.quantization_config.saved.bos_layers
    return next(
        name for name, bits in quantized.plan.layers.items() if str(bits) == width and (name in bos_layers or not bos)
    )


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["weight_scale", "input_scale"])
def test_impossible_scales_are_refused(quantized: Any, copied: Path, name: str, value: float) -> None:
    layer = _first(quantized, "W4A8")
    edit_tensors(copied, lambda tensors: tensors[f"{layer}.{name}"].view(-1)[:1].fill_(value))
    with pytest.raises(ArtifactFormatError, match=f"{layer}.{name}".replace(".", r"\.")):
        UNet2DConditionModel.from_pretrained(copied)


def test_codes_of_floats_that_are_no_numbers_are_refused(made: Callable[..., Any], tmp_path: Path) -> None:
    pipe, plan = made(activations="dynamic", floats=True)
    pipe.unet.save_pretrained(tmp_path)
    layer = next(name for name, bits in plan.layers.items() if bits.is_float)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{layer}.weight"][3] = 127
        for name in CHECKSUMS:
            del tensors[name]

    edit_tensors(tmp_path, spoil)
    with pytest.raises(ArtifactFormatError, match=rf"{re.escape(layer)}\.weight: NaN; the file is damaged"):
        UNet2DConditionModel.from_pretrained(tmp_path)


def test_a_convolution_of_floats_is_refused(made: Callable[..., Any], tmp_path: Path) -> None:
    pipe, _ = made(activations="dynamic", floats=True)
    pipe.unet.save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda tensors: [tensors.pop(name) for name in CHECKSUMS])
    edit_config(tmp_path, lambda config: _plan(config).update({"conv_in": "W8A8 float"}))
    with pytest.raises(PlanError, match="conv_in: W8A8 float is for Linear layers"):
        UNet2DConditionModel.from_pretrained(tmp_path)


def _plan(config: dict[str, Any]) -> dict[str, str]:
    layers: dict[str, str] = config["quantization_config"]["plan"]["layers"]
    return layers


@pytest.mark.parametrize("name", ["weight", "weight_scale", "input_zero_point", "bias"])
def test_a_missing_tensor_is_refused(quantized: Any, copied: Path, name: str) -> None:
    layer = next(n for n, b in quantized.plan.layers.items() if str(b) == "W8A8" and "conv" in n)
    edit_tensors(copied, lambda tensors: tensors.pop(f"{layer}.{name}"))
    with pytest.raises(ArtifactFormatError, match="missing"):
        UNet2DConditionModel.from_pretrained(copied)


@pytest.mark.parametrize(("was", "now"), [("W4A8", "W8A8"), ("W8A8", "W16A16"), ("W16A16", "W4A8"), ("W4A8", "W4A16")])
def test_a_plan_that_disagrees_with_the_tensors_is_refused(quantized: Any, copied: Path, was: str, now: str) -> None:
    layer = _first(quantized, was)
    edit_config(copied, lambda config: config["quantization_config"]["plan"]["layers"].update({layer: now}))
    with pytest.raises(ArtifactFormatError, match=layer.replace(".", r"\.")):
        UNet2DConditionModel.from_pretrained(copied)


def test_a_plan_that_disagrees_with_the_model_is_refused(quantized: Any, copied: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        saved = config["quantization_config"]
        saved["plan"]["layers"] |= {"nowhere.conv": "W8A8", "mid_block": "W8A8", "conv_norm_out": "W8A8"}
        saved["input_splits"]["conv_in"] = [3, 3]
        saved["bos_layers"].append("conv_in")

    edit_config(copied, change)
    with pytest.raises(PlanError) as error:
        UNet2DConditionModel.from_pretrained(copied)
    assert len(error.value.disagreements) == 4


@pytest.mark.parametrize("change", [{"downsample_padding": []}, {"cross_attention_dim": True}], ids=str)
def test_an_architecture_of_no_whole_numbers_is_refused(copied: Path, change: dict[str, Any]) -> None:
    edit_config(copied, lambda config: config.update(change))
    with pytest.raises(PlanError, match=r"expected .*whole number"):
        UNet2DConditionModel.from_pretrained(copied)


def test_a_config_of_a_huge_model_is_refused_before_memory_is_spent(quantized: Any, copied: Path) -> None:
    # Diffusers asks for each tensor's address space for a moment; half a GiB of it is never touched.
    edit_config(copied, lambda config: config.update(cross_attention_dim=2**22))
    with pytest.raises(ArtifactFormatError, match="expected"):
        UNet2DConditionModel.from_pretrained(copied)


def test_a_newer_format_is_refused(copied: Path) -> None:
    edit_config(copied, lambda config: config["quantization_config"].update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(ArtifactFormatError, match="update mixdq"):
        UNet2DConditionModel.from_pretrained(copied)


def test_a_non_finite_input_names_its_layer(quantized: Any) -> None:
    layer = next(m for m in quantized.pipe.unet.modules() if isinstance(m, nn.Linear) and isinstance(m, QuantizedLayer))
    with pytest.raises(NonFiniteError, match=layer.layout.name.replace(".", r"\.")):
        layer(torch.full((1, layer.in_features), torch.nan))
