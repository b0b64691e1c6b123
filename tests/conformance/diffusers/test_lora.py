"""LoRA through PEFT around quantized layers; its oracle is the dequantized model with the same adapters."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mixdq.errors import ConfigError
from mixdq.integrations.diffusers import MixDQConfig
from mixdq.testing import tiny_sdxl_pipeline

peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")

LINEAR = r"(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj)$"
CONVOLUTIONS = r"(conv1|conv2|conv_shortcut|\.conv|conv_in)$"
RANK = 2
SAME = {"rtol": 1e-4, "atol": 1e-4}
"""Two ways to sum the same products in float32."""


def adapter(model: nn.Module, seed: int, *, targets: str = LINEAR, magnitudes: bool = False) -> dict[str, Tensor]:
    """A LoRA file's content for a float denoiser."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if not re.search(targets, name):
            continue
        out, inner, *window = module.weight.shape
        tensors[f"unet.{name}.lora_A.weight"] = 0.3 * torch.randn(RANK, inner, *window, generator=draw)
        tensors[f"unet.{name}.lora_B.weight"] = 0.3 * torch.randn(out, RANK, *[1] * len(window), generator=draw)
        if magnitudes:
            tensors[f"unet.{name}.lora_magnitude_vector"] = torch.ones(out)
    assert tensors
    return tensors


def codes_of(model: nn.Module) -> Mapping[str, Tensor]:
    return {
        name.replace(".base_layer", ""): tensor.clone()
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def with_adapters(subject: Any, *seeds: int, dequantized: bool = False) -> Any:
    model, floating = subject.open(), subject.open_float()
    if dequantized:
        model.dequantize()
    for seed in seeds:
        model.load_lora_adapter(adapter(floating, seed), prefix="unet", adapter_name=f"number{seed}")
    return model


def test_adapters_do_what_they_do_to_the_dequantized_model(weight_only: Any) -> None:
    plain = weight_only.expected()
    models = [with_adapters(weight_only, 1, 2, dequantized=dequantized) for dequantized in (False, True)]
    for seeds, weights in (((1,), [1.0]), ((1,), [0.4]), ((1, 2), [0.7, 0.6])):
        outputs = []
        for model in models:
            model.set_adapters([f"number{seed}" for seed in seeds], weights)
            outputs.append(weight_only.run(model))
        torch.testing.assert_close(*outputs, **SAME)
        assert (outputs[0] - plain).norm() > 0.01 * plain.norm()


@pytest.mark.parametrize("bits", [8, 4])
def test_convolutions_take_adapters_too(weight_only: Any, bits: int) -> None:
    recipe = MixDQConfig(weight_bits=bits, backend=weight_only.backend)
    content = adapter(weight_only.open_float(), 1, targets=CONVOLUTIONS)
    outputs = []
    for dequantized in (False, True):
        model = weight_only.open(weight_only.floating, quantization_config=recipe)
        if dequantized:
            model.dequantize()
        plain = weight_only.run(model)
        for name in ("first", "second"):
            model.load_lora_adapter(dict(content), prefix="unet", adapter_name=name)
        model.set_adapters(["first", "second"], [0.3, 0.4])
        outputs.append(weight_only.run(model))
        assert (outputs[-1] - plain).norm() > 0.01 * plain.norm()
    torch.testing.assert_close(*outputs, **SAME)


def test_they_work_on_the_second_picture_too_and_leave_nothing_behind(subject: Any) -> None:
    model = subject.open()
    before, codes = subject.run(model), codes_of(model)
    model.load_lora_adapter(adapter(subject.open_float(), 1), prefix="unet", adapter_name="style")
    styled = subject.run(model)
    assert not torch.allclose(styled, before, rtol=1e-2)
    assert torch.equal(subject.run(model), styled)
    model.disable_lora()
    assert torch.equal(subject.run(model), before)
    model.enable_lora()
    assert torch.equal(subject.run(model), styled)
    model.set_adapters("style", 0.0)
    assert torch.equal(subject.run(model), before)
    model.unload_lora()
    assert torch.equal(subject.run(model), before)
    assert same(codes_of(model), codes)


def test_of_two_adapters_each_can_be_the_only_one(subject: Any) -> None:
    both, first = with_adapters(subject, 1, 2), with_adapters(subject, 1)
    both.set_adapters(["number1", "number2"], [1.0, 0.0])
    assert torch.equal(subject.run(both), subject.run(first))
    both.delete_adapters("number2")
    both.set_adapters("number1")
    assert torch.equal(subject.run(both), subject.run(first))


def test_an_adapter_made_here_is_added_and_casts_stay_refused(subject: Any) -> None:
    model = subject.open()
    before = subject.run(model)
    config = peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    model.add_adapter(config)
    assert torch.isfinite(subject.run(model)).all()
    assert not torch.equal(subject.run(model), before)
    with pytest.raises(ValueError, match="quantized model"):
        model.half()


def test_fusing_is_refused_before_a_code_is_touched(subject: Any) -> None:
    model = with_adapters(subject, 1)
    output, codes = subject.run(model), codes_of(model)
    for safe in (False, True):
        with pytest.raises(ConfigError, match="fuse it into the float model"):
            model.fuse_lora(safe_fusing=safe)
    assert same(codes_of(model), codes)
    assert torch.equal(subject.run(model), output)


def test_the_dequantized_model_fuses(weight_only: Any) -> None:
    model = with_adapters(weight_only, 1)
    expected = weight_only.run(model)
    model.dequantize()
    model.fuse_lora()
    model.unload_lora()
    torch.testing.assert_close(weight_only.run(model), expected, **SAME)


def test_dora_is_refused_and_nothing_stays_of_it(subject: Any) -> None:
    model = with_adapters(subject, 1)
    output = subject.run(model)
    with pytest.raises(ConfigError, match="plain LoRA"):
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], use_dora=True), "dora")
    content = adapter(subject.open_float(), 2, magnitudes=True)
    with pytest.raises(ConfigError, match="plain LoRA"):
        model.load_lora_adapter(content, prefix="unet", adapter_name="dora")
    model.set_adapters("number1")
    assert torch.equal(subject.run(model), output)


def test_a_model_with_adapters_is_not_saved_as_if_it_had_none(subject: Any, tmp_path: Path) -> None:
    model = with_adapters(subject, 1)
    with pytest.raises(ConfigError, match="save_lora_weights"):
        model.save_pretrained(tmp_path)
    model.unload_lora()
    model.save_pretrained(tmp_path)
    assert torch.equal(subject.run(subject.open(tmp_path)), subject.run(model))


def test_a_pipeline_loads_scales_and_unloads_a_file(tmp_path: Path) -> None:
    pipe = tiny_sdxl_pipeline()
    save_file(adapter(pipe.unet, 1), tmp_path / "pytorch_lora_weights.safetensors")
    pipe.unet.save_pretrained(tmp_path / "unet")
    pipe.register_modules(
        unet=type(pipe.unet).from_pretrained(
            tmp_path / "unet", quantization_config=MixDQConfig(weight_bits=4, backend="reference")
        )
    )

    def picture(**options: Any) -> Tensor:
        draw = torch.Generator().manual_seed(0)
        return pipe(
            "a red dog", num_inference_steps=1, guidance_scale=0.0, generator=draw, output_type="pt", **options
        ).images

    before = picture()
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    styled = picture()
    assert not torch.equal(styled, before)
    assert torch.equal(picture(), styled)
    assert torch.equal(picture(cross_attention_kwargs={"scale": 0.0}), before)
    with pytest.raises(ConfigError, match="fuse it into the float model"):
        pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(picture(), before)
