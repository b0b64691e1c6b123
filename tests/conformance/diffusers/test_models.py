"""What diffusers asks of every quantization method, point by point: its own tester's list, on our families."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from mixdq.errors import ConfigError
from mixdq.integrations.diffusers import MixDQConfig
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.layout import weight_shape_of

CASTS = [
    lambda model: model.to(torch.float16),
    lambda model: model.to(device="cpu", dtype=torch.bfloat16),
    lambda model: model.half(),
    lambda model: model.float(),
]


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def test_no_parameter_is_lost(subject: Any) -> None:
    model = subject.shared()
    layers = layers_of(model)
    codes = {f"{name}.weight" for name in layers}
    count = sum(p.numel() for name, p in model.named_parameters() if name not in codes)
    count += sum(math.prod(weight_shape_of(layer)) for layer in layers.values())
    assert count == subject.open_float().num_parameters()
    if subject.weight_only:
        # Below 8 bits diffusers counts the bytes that the codes are packed into.
        assert model.num_parameters() == count


def test_memory_is_at_least_as_much_smaller_as_diffusers_asks_for(subject: Any) -> None:
    assert subject.open_float().get_memory_footprint() / subject.shared().get_memory_footprint() >= 1.2


def test_outputs_are_numbers_and_the_same_every_time(subject: Any) -> None:
    output = subject.expected()
    assert torch.isfinite(output).all()
    assert torch.equal(subject.run(subject.shared()), output)


def test_outputs_are_near_those_of_the_float_model(weight_only: Any) -> None:
    expected = weight_only.run(weight_only.open_float())
    error = weight_only.expected() - expected
    # Two decimal digits: rounding 8-bit weights errs by 1/254 of each channel's greatest at most.
    assert error.norm() < 0.02 * expected.norm()


def test_casts_are_refused(subject: Any) -> None:
    model = subject.shared()
    for cast in CASTS:
        with pytest.raises(ValueError, match="quantized model"):
            cast(model)
    assert model.to("cpu").dtype == torch.float32


@pytest.mark.parametrize("shard", [None, "100KB"], ids=["whole", "sharded"])
def test_it_is_saved_and_opened_bit_identical(subject: Any, tmp_path: Path, shard: str | None) -> None:
    model = subject.shared()
    model.save_pretrained(tmp_path, **({} if shard is None else {"max_shard_size": shard}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard is not None)
    again = subject.open(tmp_path)
    assert torch.equal(subject.run(again), subject.expected())
    assert not again.training


def test_the_config_is_json_and_comes_back(subject: Any) -> None:
    model = subject.shared()
    quantization = model.hf_quantizer.quantization_config
    assert "quantization_config" in model.config
    assert model.config["_pre_quantization_dtype"] == torch.float32
    assert json.loads(quantization.to_json_string()) == quantization.to_dict() == quantization.to_diff_dict()
    assert MixDQConfig.from_dict(quantization.to_dict()).saved == quantization.saved


def test_the_layers_of_the_plan_are_quantized_and_no_others(subject: Any) -> None:
    model = subject.shared()
    plan = model.hf_quantizer.quantization_config.saved.plan
    assert layers_of(model).keys() == {name for name, bits in plan.layers.items() if bits.weight < 16}
    every = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert plan.layers.keys() == every


def test_modules_to_not_convert_stay_float_and_cost_memory(weight_only: Any) -> None:
    recipe = MixDQConfig(weight_bits=8, modules_to_not_convert=["attn1", "conv_in"], backend=weight_only.backend)
    model = UNet2DConditionModel.from_pretrained(weight_only.floating, quantization_config=recipe)
    assert not [name for name in layers_of(model) if "attn1" in name or name == "conv_in"]
    assert layers_of(model)
    assert model.get_memory_footprint() > weight_only.shared().get_memory_footprint()
    assert torch.isfinite(weight_only.run(model)).all()


def test_device_maps_are_followed(subject: Any) -> None:
    expected = subject.expected()
    for device_map in ("cpu", {"": "cpu"}, *(() if torch.cuda.is_available() else ("auto", "balanced"))):
        model = subject.open(device_map=device_map)
        assert model.hf_device_map
        assert torch.equal(subject.run(model), expected)


def test_a_variant_is_written_and_found_by_its_name(subject: Any, tmp_path: Path) -> None:
    subject.shared().save_pretrained(tmp_path, variant="w8")
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.w8.safetensors"]
    model = subject.open(tmp_path, variant="w8", use_safetensors=True)
    assert torch.equal(subject.run(model), subject.expected())
    with pytest.raises(OSError, match="diffusion_pytorch_model"):
        subject.open(tmp_path)


def test_options_that_need_pickles_or_all_of_the_memory_are_refused(subject: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="safetensors"):
        subject.shared().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match=r"diffusion_pytorch_model\.bin"):
        subject.open(use_safetensors=False)
    with pytest.raises(ValueError, match="low_cpu_mem_usage"):
        subject.open(low_cpu_mem_usage=False)


def test_dequantizing_gives_the_float_model_of_the_same_weights(weight_only: Any, tmp_path: Path) -> None:
    model = weight_only.open()
    model.dequantize()
    assert not layers_of(model)
    # The same products in another order of summation.
    torch.testing.assert_close(weight_only.run(model), weight_only.expected(), rtol=1e-4, atol=1e-4)
    model.half().save_pretrained(tmp_path)
    assert UNet2DConditionModel.from_pretrained(tmp_path).dtype == torch.float32


def test_a_copy_runs_alone(subject: Any) -> None:
    model = copy.deepcopy(subject.shared())
    again = copy.deepcopy(model)
    model.dequantize()
    assert torch.equal(subject.run(again), subject.expected())
