"""What needs no PEFT; the rest is in tests/conformance/diffusers/test_lora.py."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import UNet2DConditionModel
from torch import nn

from mixdq.errors import ConfigError
from mixdq.integrations.diffusers.adapters import guard_adapters, release_adapters


def test_a_quantized_denoiser_refuses_to_fuse_and_so_does_its_copy(quantized: Any) -> None:
    for unet in (quantized.pipe.unet, copy.deepcopy(quantized.pipe.unet)):
        assert unet.add_adapter.__self__ is unet
        with pytest.raises(ConfigError, match="Leave it beside them"):
            unet.fuse_lora(safe_fusing=True)


def test_an_adapter_that_reads_the_weight_is_refused_before_it_is_there(quantized: Any) -> None:
    with pytest.raises(ConfigError, match="DoRA"):
        quantized.pipe.unet.add_adapter(SimpleNamespace(use_dora=True))


def test_a_dequantized_denoiser_has_diffusers_own_methods_again(quantized: Any) -> None:
    unet = copy.deepcopy(quantized.pipe.unet).dequantize()
    assert unet.fuse_lora.__func__ is UNet2DConditionModel.fuse_lora
    release_adapters(unet)


def test_a_model_without_adapters_is_left_alone() -> None:
    model = nn.Linear(2, 2)
    before = set(vars(model))
    guard_adapters(model)
    assert set(vars(model)) == before
