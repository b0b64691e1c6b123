"""Picture prompts (IP-Adapter) beside quantized layers; the oracle is the dequantized model with the same adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mixdq
from mixdq.errors import ConfigError, UnsupportedModelError
from mixdq.testing import tiny_sd_pipeline, tiny_sdxl_pipeline

MAKERS = {"sd": tiny_sd_pipeline, "sdxl": tiny_sdxl_pipeline}
TOKENS, WIDTH = 4, 8
"""Tokens that a picture becomes, and the width of its embedding."""
SAME = {"rtol": 1e-4, "atol": 1e-4}
"""Two ways to sum the same products in float32."""


def adapter(unet: Any) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter file's content: cross-attention layers are numbered 1, 3, 5, ..."""
    draw, text = torch.Generator().manual_seed(2), unet.config.cross_attention_dim
    readers = [
        unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors if ".attn2." in name
    ]
    return {
        "image_proj": {
            "proj.weight": torch.randn(TOKENS * text, WIDTH, generator=draw),
            "proj.bias": torch.zeros(TOKENS * text),
            "norm.weight": torch.ones(text),
            "norm.bias": torch.zeros(text),
        },
        "ip_adapter": {
            f"{2 * i + 1}.{kind}.weight": 0.3 * torch.randn(reader.inner_dim, text, generator=draw)
            for i, reader in enumerate(readers)
            for kind in ("to_k_ip", "to_v_ip")
        },
    }


def around(family: str, unet: Any) -> Any:
    pipe = MAKERS[family]()
    pipe.register_modules(unet=unet)
    return pipe


def load(pipe: Any) -> None:
    pipe.load_ip_adapter(adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)


def picture(pipe: Any, *, shown: bool = True) -> Tensor:
    embeds = torch.linspace(-1, 1, WIDTH).expand(1, 1, WIDTH)
    images: Tensor = pipe(
        "a red dog",
        num_inference_steps=1,
        guidance_scale=0.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        **({"ip_adapter_image_embeds": [embeds]} if shown else {}),
    ).images
    return images


def test_a_picture_prompt_does_what_it_does_to_the_dequantized_model(weight_only: Any) -> None:
    pictures = []
    for model in (weight_only.open(), weight_only.open().dequantize()):
        pipe = around(weight_only.family, model)
        plain = picture(pipe, shown=False)
        load(pipe)
        pipe.set_ip_adapter_scale(0.7)
        pictures.append(picture(pipe))
    torch.testing.assert_close(*pictures, **SAME)
    assert (pictures[0] - plain).norm() > 0.01 * plain.norm()


def test_it_is_scaled_and_unloaded_and_no_code_changes(subject: Any) -> None:
    model = subject.open()
    pipe, codes = around(subject.family, model), {name: t.clone() for name, t in model.state_dict().items()}
    before = picture(pipe, shown=False)
    load(pipe)
    assert not torch.allclose(picture(pipe), before, **SAME)
    with pytest.raises(ValueError, match="quantized model"):
        model.half()
    pipe.set_ip_adapter_scale(0.0)
    torch.testing.assert_close(picture(pipe), before, **SAME)
    pipe.unload_ip_adapter()
    torch.testing.assert_close(picture(pipe, shown=False), before, **SAME)
    after = model.state_dict()
    assert after.keys() == codes.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in codes.items())


def test_a_model_with_one_is_neither_saved_nor_quantized(subject: Any, tmp_path: Path) -> None:
    pipe = around(subject.family, subject.open())
    load(pipe)
    with pytest.raises(ConfigError, match="unload_ip_adapter"):
        pipe.unet.save_pretrained(tmp_path)
    floating = MAKERS[subject.family]()
    load(floating)
    with pytest.raises(UnsupportedModelError, match="unload_ip_adapter"):
        mixdq.inspect(floating)
