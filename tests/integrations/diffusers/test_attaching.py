import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

Paint = Callable[[DiffusionPipeline], torch.Tensor]


def test_casts_raise_and_moves_do_not(quantized: Any) -> None:
    unet = copy.deepcopy(quantized.pipe.unet)
    for cast in (unet.half, unet.float, lambda: unet.to(torch.float16), lambda: unet.to(dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match=r"quantized model"):
            cast()
    unet.to("cpu")


def test_a_deep_copy_paints_and_saves_the_same(quantized: Any, tmp_path: Path) -> None:
    copy.deepcopy(quantized.pipe.unet).save_pretrained(tmp_path)
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / name).read_bytes() == (quantized.folder / "unet" / name).read_bytes()


def test_diffusers_knows_the_denoiser_as_quantized(quantized: Any) -> None:
    unet = quantized.pipe.unet
    assert (unet.is_quantized, unet.quantization_method.value) == (True, "mixdq")
    assert unet.hf_quantizer.quantization_config.saved.plan == quantized.plan
    assert unet.config["_pre_quantization_dtype"] == torch.float32
