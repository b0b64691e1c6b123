"""What is exported stands for the same weights by ComfyUI's rule, which is applied here, and by comfy-kitchen."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from mixdq.errors import ConfigError, NonFiniteError, UnsupportedModelError
from mixdq.integrations.comfyui import ComfyUIExport, export_comfyui
from mixdq.pipeline.load import load_pipeline
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.linear import QuantizedLinear
from mixdq.testing import fingerprint, tiny_flux_pipeline, tiny_sdxl_pipeline

MARKER = ".comfy_quant"


@pytest.fixture(scope="module")
def exported(quantized: Any, tmp_path_factory: pytest.TempPathFactory) -> ComfyUIExport:
    return export_comfyui(quantized.folder, tmp_path_factory.mktemp("comfy") / "model.safetensors")


def marked(tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Layer -> its JSON, as ComfyUI reads it."""
    return {
        name.removesuffix(MARKER): json.loads(tensor.numpy().tobytes())
        for name, tensor in tensors.items()
        if name.endswith(MARKER)
    }


def read(file: Path) -> dict[str, Tensor]:
    """The weights in a file by ComfyUI's rule, all of them floats, in the community's names."""
    tensors = load_file(file)
    for key in marked(tensors):
        del tensors[key + MARKER]
        codes = tensors[f"{key}.weight"]
        assert codes.dtype == torch.int8
        tensors[f"{key}.weight"] = codes.float() * tensors.pop(f"{key}.weight_scale")
    return tensors


def layers_of(quantized: Any) -> dict[str, QuantizedLinear | QuantizedConv2d]:
    found = quantized.pipe.unet.named_modules()
    return {name: module for name, module in found if isinstance(module, QuantizedLinear | QuantizedConv2d)}


def test_every_weight_is_the_one_that_the_layer_stands_for(quantized: Any, exported: ComfyUIExport) -> None:
    unet, layers = quantized.pipe.unet, layers_of(quantized)
    shared = {f"model.diffusion_model.{name}": tensor for name, tensor in read(exported.file).items()}
    found = convert_ldm_unet_checkpoint(shared, dict(unet.config))
    exact = {f"{layer.name}.weight" for layer in exported.layers if layer.stored == "int8"}
    expected = {name: tensor for name, tensor in unet.state_dict().items() if name.rpartition(".")[0] not in layers}
    for name, layer in layers.items():
        expected[f"{name}.weight"] = layer.float_weight()
        if layer.bias is not None:
            expected[f"{name}.bias"] = layer.bias
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name in exact:
            assert torch.equal(found[name], tensor), name
        else:
            # Half a unit in float16's last of 11 bits; below its least normal number, 2^-14, half its step of 2^-24.
            bound = torch.maximum(tensor.double().abs() * 2.0**-11, torch.tensor(2.0**-25).double())
            assert bool(((found[name].double() - tensor.double()).abs() <= bound).all()), name


def test_every_quantized_layer_is_reported_and_linear_ones_are_held(quantized: Any, exported: ComfyUIExport) -> None:
    layers, tensors = layers_of(quantized), load_file(exported.file)
    assert {layer.name for layer in exported.layers} == layers.keys()
    for layer in exported.layers:
        linear = isinstance(layers[layer.name], QuantizedLinear)
        assert layer.stored == ("int8" if linear else "float16")
        assert layer.bits == layers[layer.name].layout.bits
        assert tensors[f"{layer.key}.weight"].dtype == (torch.int8 if linear else torch.float16)
    assert {layer.bits.weight for layer in exported.layers if layer.stored == "int8"} >= {2, 4, 8}


def test_layers_with_float_inputs_and_those_that_read_the_text_are_multiplied_in_floating_point(
    quantized: Any, exported: ComfyUIExport
) -> None:
    layers, markers = layers_of(quantized), marked(load_file(exported.file))
    kinds = set()
    for layer in exported.layers:
        if layer.stored == "int8":
            layout = layers[layer.name].layout
            in_float = layout.weight_only or layout.bos
            assert markers[layer.key] == {
                "format": "int8_tensorwise",
                **({"full_precision_matrix_mult": True} if in_float else {}),
            }
            kinds.add((layout.weight_only, layout.bos))
    assert {(False, False), (True, False), (False, True)} <= kinds


def test_a_loaded_pipeline_gives_the_same_file_and_stays_as_it_was(
    quantized: Any, exported: ComfyUIExport, tmp_path: Path
) -> None:
    before = fingerprint(quantized.pipe.unet)
    again = export_comfyui(quantized.pipe, tmp_path / "model.safetensors")
    assert fingerprint(quantized.pipe.unet) == before
    assert again.layers == exported.layers
    assert again.file.read_bytes() == exported.file.read_bytes()


def test_the_summary_counts_every_layer(exported: ComfyUIExport) -> None:
    lines = str(exported).splitlines()
    assert sum(int(line.split()[0]) for line in lines[1:-1]) == len(exported.layers)
    assert any("float16: ComfyUI has no quantized convolutions" in line for line in lines)


def test_comfy_kitchen_opens_and_multiplies_what_is_exported(quantized: Any, exported: ComfyUIExport) -> None:
    kitchen = pytest.importorskip(
        "comfy_kitchen.tensor", reason="comfy-kitchen, which has ComfyUI's layouts, is absent"
    )
    tensors, layers = load_file(exported.file), layers_of(quantized)
    draw = torch.Generator().manual_seed(0)
    for layer in exported.layers:
        if layer.stored == "float16":
            continue
        codes, scale = tensors[f"{layer.key}.weight"], tensors[f"{layer.key}.weight_scale"]
        params = kitchen.TensorWiseINT8Layout.Params(
            scale=scale, orig_dtype=torch.float32, orig_shape=tuple(codes.shape)
        )
        weight = kitchen.QuantizedTensor(codes, "TensorWiseINT8Layout", params)
        real = layers[layer.name].float_weight()
        assert torch.equal(weight.dequantize(), real)
        x = torch.randn(3, 5, codes.shape[1], generator=draw)
        error = torch.nn.functional.linear(x, weight).double() - x.double() @ real.double().T
        # Each input is rounded by at most half a step, 1/127 of its token's largest; float32 adds some units of 2^-24.
        step = x.abs().amax(dim=-1, keepdim=True).double() / 127
        bound = step * real.double().abs().sum(dim=1) * (0.5 + 127 * 8 * 2.0**-24)
        assert bool((error.abs() <= bound).all()), layer.name


def test_an_asymmetric_model_has_no_layer_that_the_format_holds(made: Any, tmp_path: Path) -> None:
    pipe, _ = made(symmetric=False)
    with pytest.raises(ConfigError, match=r"none of the \d+ quantized layers .*zero points"):
        export_comfyui(pipe, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_floats_of_eight_bits_become_halves(made: Any, tmp_path: Path) -> None:
    pipe, _ = made(floats=True)
    with pytest.raises(ConfigError, match=r"none of the \d+ quantized layers .*codes are E4M3 floats"):
        export_comfyui(pipe, tmp_path / "model.safetensors")


def test_numbers_beyond_float16_are_refused_by_name(quantized: Any, tmp_path: Path) -> None:
    pipe: Any = load_pipeline(quantized.folder)
    with torch.no_grad():
        pipe.unet.conv_norm_out.weight[0] = 7e4
    with pytest.raises(NonFiniteError, match=r"conv_norm_out\.weight"):
        export_comfyui(pipe, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (tiny_sdxl_pipeline, ConfigError, "not quantized: `mixdq quantize"),
        (tiny_flux_pipeline, UnsupportedModelError, "FluxTransformer2DModel"),
    ],
    ids=["float", "transformer"],
)
def test_models_that_cannot_be_exported_are_refused(make: Any, error: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=text):
        export_comfyui(make(), tmp_path / "model.safetensors")


def test_an_offloaded_model_is_refused(quantized: Any, tmp_path: Path) -> None:
    pipe: Any = load_pipeline(quantized.folder)
    pipe.unet.to("meta")
    with pytest.raises(ConfigError, match="offloaded"):
        export_comfyui(pipe, tmp_path / "model.safetensors")


def test_adapters_are_refused(quantized: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft, which adds adapters, is absent")
    pipe: Any = load_pipeline(quantized.folder)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ConfigError, match="unload_lora_weights"):
        export_comfyui(pipe, tmp_path / "model.safetensors")


def test_another_file_type_is_refused_before_the_model_is_opened() -> None:
    with pytest.raises(ConfigError, match=r"model\.ckpt.*\.safetensors"):
        export_comfyui("nowhere", "model.ckpt")


def test_the_file_is_replaced_whole(quantized: Any, tmp_path: Path) -> None:
    file = tmp_path / "new" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"old")
    export_comfyui(quantized.pipe, file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
