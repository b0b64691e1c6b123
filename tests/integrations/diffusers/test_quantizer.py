import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from mixdq.errors import ArtifactFormatError, ConfigError
from mixdq.integrations.diffusers import MixDQConfig
from mixdq.metrics.sqnr import sqnr
from mixdq.runtime.kernels import native
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.layout import EXACT_NAMES

Paint = Callable[[DiffusionPipeline], torch.Tensor]


def exact_state(model: nn.Module) -> dict[str, torch.Tensor]:
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLayer)]
    return {
        f"{path}.{name}": tensor
        for path, layer in layers
        for name, tensor in layer.state_dict().items()
        if name == "weight" or name in EXACT_NAMES
    }


def test_a_saved_pipeline_opens_bit_identical(quantized: Any, painted: Paint) -> None:
    pipe = DiffusionPipeline.from_pretrained(quantized.folder)
    assert torch.equal(painted(pipe), quantized.pictures)
    assert pipe.unet.is_quantized
    saved = pipe.unet.config.quantization_config
    assert isinstance(saved, MixDQConfig)
    assert saved.saved.plan == quantized.plan
    assert saved.backend == "reference"


def test_saving_what_was_opened_writes_the_same_bytes(quantized: Any, tmp_path: Path) -> None:
    UNet2DConditionModel.from_pretrained(quantized.folder / "unet").save_pretrained(tmp_path)
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / name).read_bytes() == (quantized.folder / "unet" / name).read_bytes()
    first, second = (json.loads((f / "config.json").read_text()) for f in (tmp_path, quantized.folder / "unet"))
    assert first["quantization_config"] == second["quantization_config"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_opening_in_another_dtype_leaves_codes_scales_and_bos_rows_exact(quantized: Any, dtype: torch.dtype) -> None:
    unet = UNet2DConditionModel.from_pretrained(quantized.folder / "unet", dtype=dtype)
    found, expected = exact_state(unet), exact_state(quantized.pipe.unet)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
    assert unet.dtype == dtype
    assert unet.conv_in.bias.dtype == dtype


def test_a_half_precision_pipeline_opens_bit_identical_too(
    made: Callable[..., Any], painted: Paint, tmp_path: Path
) -> None:
    pipe, _ = made(torch.bfloat16, symmetric=False)
    pictures = painted(pipe)
    pipe.save_pretrained(tmp_path)
    opened = DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(painted(opened), pictures)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_pipeline_with_dynamic_activations_opens_bit_identical_too(
    made: Callable[..., Any], painted: Paint, tmp_path: Path, backend: str
) -> None:
    if backend == "cpu" and native.trouble():
        pytest.skip(str(native.trouble()))
    pipe, _ = made(activations="dynamic", backend=backend)
    pictures = painted(pipe)
    pipe.save_pretrained(tmp_path)
    assert not [name for name in pipe.unet.state_dict() if "input_scale" in name or "input_zero_point" in name]
    opened = DiffusionPipeline.from_pretrained(tmp_path)
    assert opened.unet.config.quantization_config.saved.activations == "dynamic"
    assert torch.equal(painted(opened), pictures)


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_a_pipeline_with_layers_of_floats_opens_bit_identical_too(
    made: Callable[..., Any], painted: Paint, tmp_path: Path, activations: str
) -> None:
    pipe, plan = made(activations=activations, symmetric=False, floats=True)
    pictures = painted(pipe)
    pipe.save_pretrained(tmp_path)
    opened = DiffusionPipeline.from_pretrained(tmp_path)
    assert opened.unet.config.quantization_config.saved.plan == plan
    assert torch.equal(painted(opened), pictures)
    state, found = exact_state(pipe.unet), exact_state(opened.unet)
    assert state.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    floats = [layer for layer in opened.unet.modules() if getattr(layer, "layout", None) and layer.layout.bits.is_float]
    assert {layer.bos_row() is None for layer in floats} == {True, False}
    for layer in floats:
        layer.use_backend("fp8")
    assert sqnr(pictures, painted(opened)) > 60


def test_a_sharded_save_opens_the_same(quantized: Any, tmp_path: Path) -> None:
    quantized.pipe.unet.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    unet = UNet2DConditionModel.from_pretrained(tmp_path)
    state = quantized.pipe.unet.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in unet.state_dict().items())


def test_codes_are_packed_on_disk(quantized: Any) -> None:
    tensors = load_file(quantized.folder / "unet" / "diffusion_pytorch_model.safetensors")
    modules = dict(quantized.pipe.unet.named_modules())
    for name, bits in quantized.plan.layers.items():
        if bits.weight < 8:
            shape = modules[name].float_weight().flatten(1).shape
            parts = len(modules[name].layout.splits) or 1
            # Each part's rows end on a byte.
            assert shape[0] * shape[1] * bits.weight / 8 <= tensors[f"{name}.weight"].numel()
            assert tensors[f"{name}.weight"].numel() < shape[0] * (shape[1] * bits.weight / 8 + parts)


def test_float16_values_are_saved_as_float16_and_nothing_is_lost(quantized: Any, tmp_path: Path) -> None:
    unet = copy.deepcopy(quantized.pipe.unet)
    kept = [tensor for tensor in unet.parameters() if tensor.is_floating_point()]
    with torch.no_grad():
        for tensor in kept[1:]:
            tensor.copy_(tensor.half())
        kept[0].fill_(0.1)
    unet.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    wide = [name for name, tensor in saved.items() if tensor.dtype == torch.float32]
    assert [name for name in wide if name.rpartition(".")[2] not in EXACT_NAMES] == _names(unet, kept[0])
    state = unet.state_dict()
    for name, tensor in UNet2DConditionModel.from_pretrained(tmp_path).state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])


def _names(model: nn.Module, tensor: torch.Tensor) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter is tensor]


def test_dequantizing_gives_a_float_model_that_saves_as_one(quantized: Any, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(quantized.folder / "unet")
    weight = unet.conv_out.float_weight() if isinstance(unet.conv_out, QuantizedLayer) else unet.conv_out.weight
    unet.dequantize()
    assert not exact_state(unet)
    unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(again.conv_out.weight, weight)
    assert again.half().dtype == torch.float16


@pytest.mark.parametrize("offload", ["model hooks", "sequential"])
def test_offloaded_models_compute_the_same(quantized: Any, offload: str) -> None:
    unet = UNet2DConditionModel.from_pretrained(quantized.folder / "unet")
    inputs = {
        "sample": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor(999),
        "encoder_hidden_states": next(
            m.bos_input for m in unet.modules() if isinstance(m, QuantizedLayer) and m.bos_input is not None
        ).expand(2, 3, -1),
        "added_cond_kwargs": {"text_embeds": torch.ones(2, 32), "time_ids": torch.ones(2, 6)},
    }
    with torch.no_grad():
        expected = unet(**inputs).sample
        if offload == "sequential":
            accelerate.cpu_offload(unet, torch.device("cpu"), offload_buffers=True)
        else:
            unet, _ = accelerate.cpu_offload_with_hook(unet, torch.device("cpu"))
        assert torch.equal(unet(**inputs).sample, expected)
        assert torch.equal(unet(**inputs).sample, expected)


def test_a_device_map_is_followed_but_disk_is_refused(quantized: Any) -> None:
    unet = UNet2DConditionModel.from_pretrained(quantized.folder / "unet", device_map={"": "cpu"})
    assert exact_state(unet)
    with pytest.raises(ConfigError, match="disk"):
        UNet2DConditionModel.from_pretrained(quantized.folder / "unet", device_map={"": "disk"})


def test_pickles_are_not_written(quantized: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="safe_serialization"):
        quantized.pipe.unet.save_pretrained(tmp_path, safe_serialization=False)


def test_a_loader_option_that_passes_the_quantizer_by_is_refused(quantized: Any) -> None:
    with pytest.raises(ArtifactFormatError, match="offload_state_dict"):
        UNet2DConditionModel.from_pretrained(quantized.folder / "unet", offload_state_dict=True)
