"""Checkpoints in one file: written here from a diffusers pipeline, in the layout that communities share."""

import re
from collections.abc import Iterator
from functools import partial

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from mixdq.errors import UnsupportedModelError
from mixdq.pipeline.generate import GenerationSpec, generate
from mixdq.pipeline.load import load_pipeline
from mixdq.testing import tiny_sd_pipeline, tiny_sdxl_pipeline

RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "time_emb_proj.": "emb_layers.1.",
    "conv_shortcut.": "skip_connection.",
}
UNET = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
    # One residual layer a block: after conv_in come block 0, its downsampler, block 1.
    "down_blocks.0.resnets.0.": "input_blocks.1.0.",
    "down_blocks.0.downsamplers.0.conv.": "input_blocks.2.0.op.",
    "down_blocks.1.resnets.0.": "input_blocks.3.0.",
    "down_blocks.1.attentions.0.": "input_blocks.3.1.",
    "up_blocks.0.resnets.0.": "output_blocks.0.0.",
    "up_blocks.0.attentions.0.": "output_blocks.0.1.",
    "up_blocks.0.resnets.1.": "output_blocks.1.0.",
    "up_blocks.0.attentions.1.": "output_blocks.1.1.",
    "up_blocks.0.upsamplers.0.conv.": "output_blocks.1.2.conv.",
    "up_blocks.1.resnets.0.": "output_blocks.2.0.",
    "up_blocks.1.resnets.1.": "output_blocks.3.0.",
}
VAE = {
    "conv_norm_out.": "norm_out.",
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.group_norm.": "mid.attn_1.norm.",
    "mid_block.attentions.0.to_q.": "mid.attn_1.q.",
    "mid_block.attentions.0.to_k.": "mid.attn_1.k.",
    "mid_block.attentions.0.to_v.": "mid.attn_1.v.",
    "mid_block.attentions.0.to_out.0.": "mid.attn_1.proj_out.",
    "down_blocks.0.resnets.": "down.0.block.",
    "down_blocks.0.downsamplers.0.": "down.0.downsample.",
    "down_blocks.1.resnets.": "down.1.block.",
    # The up path is counted from its end.
    "up_blocks.0.resnets.": "up.1.block.",
    "up_blocks.0.upsamplers.0.": "up.1.upsample.",
    "up_blocks.1.resnets.": "up.0.block.",
    "conv_shortcut.": "nin_shortcut.",
}


def renamed(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        name = re.sub(rf"(^|(?<=\.)){re.escape(ours)}", theirs, name, count=1)
    return name


def in_one_file(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    """The weights of a tiny pipeline in the community's layout."""
    tensors = {}
    for name, tensor in pipe.unet.state_dict().items():
        inner = renamed(name, RESNET) if ".resnets." in name else name
        tensors[f"model.diffusion_model.{renamed(inner, UNET)}"] = tensor
    for name, tensor in pipe.vae.state_dict().items():
        # There attention is of convolutions.
        linear = ".attentions." in name and name.endswith("weight") and tensor.ndim == 2
        tensors[f"first_stage_model.{renamed(name, VAE)}"] = tensor[..., None, None] if linear else tensor
    if "text_encoder_2" in pipe.components:
        tensors |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in open_clip(pipe.text_encoder_2)}
    else:
        for name, tensor in pipe.text_encoder.state_dict().items():
            tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.": "attn.",
    "final_layer_norm.": "ln_final.",
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
}


def open_clip(encoder: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """SDXL's second text encoder in the layout that it was trained in: queries, keys and values in one."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    yield "text_projection", state.pop("text_projection.weight").T
    for name in list(state):
        if ".q_proj." in name:
            joined = torch.cat([state.pop(name.replace(".q_", f".{kind}_")) for kind in "qkv"])
            yield renamed(name, OPEN_CLIP).replace("q_proj.", "in_proj_"), joined
    for name, tensor in state.items():
        yield renamed(name, OPEN_CLIP), tensor


def with_whole_vae(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Give a tiny pipeline an autoencoder of the kind that checkpoints hold."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        pipe.register_modules(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(8, 16),
                norm_num_groups=4,
                latent_channels=4,
            ).eval()
        )
    return pipe


@pytest.fixture(scope="module")
def pipe() -> DiffusionPipeline:
    return with_whole_vae(tiny_sd_pipeline())


@pytest.fixture(scope="module")
def tensors(pipe) -> dict[str, Tensor]:
    return in_one_file(pipe)


@pytest.fixture
def offline(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("make", [tiny_sd_pipeline, partial(tiny_sdxl_pipeline, text_encoders=1)], ids=["sd", "sdxl"])
def test_checkpoint_with_its_configuration_beside_it_is_the_pipeline_it_was_made_from(make, tmp_path) -> None:
    pipe, file = with_whole_vae(make()), tmp_path / "model-1.5.safetensors"
    save_file(in_one_file(pipe), file)
    pipe.save_pretrained(tmp_path / "model-1.5")
    for weights in (tmp_path / "model-1.5").rglob("*.safetensors"):
        weights.unlink()
    opened = load_pipeline(file)
    for part in ("unet", "vae", "text_encoder" if getattr(pipe, "text_encoder", None) else "text_encoder_2"):
        expected = getattr(pipe, part).state_dict()
        found = getattr(opened, part).state_dict()
        assert {name: tensor for name, tensor in expected.items() if not torch.equal(tensor, found[name])} == {}
    opened.set_progress_bar_config(disable=True)
    assert torch.equal(generate(opened, ["a dog"], GenerationSpec()), generate(pipe, ["a dog"], GenerationSpec()))
    assert opened.config._name_or_path == str(file)


@pytest.mark.usefixtures("offline")
def test_checkpoint_whose_configuration_cannot_be_had_says_which_it_is_and_where_to_put_it(tensors, tmp_path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    with pytest.raises(UnsupportedModelError) as caught:
        load_pipeline(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: needs the configuration, not the weights, of stable-diffusion-v1-5/")
    assert "HF_HUB_OFFLINE" in text
    assert text.endswith(f"into {tmp_path / 'model'}")
    assert "\n" not in text


def only(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def test_checkpoint_without_a_part_is_refused(pipe, tensors, tmp_path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    file = tmp_path / "model.safetensors"
    save_file(only("model.diffusion_model.", tensors), file)
    with pytest.raises(UnsupportedModelError, match=r"model.safetensors: no whole pipeline .*; name one, or") as caught:
        load_pipeline(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.time_embed.0.weight",
        "first_stage_model.quant_conv.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ],
)
def test_checkpoint_without_a_tensor_is_refused(pipe, tensors, tmp_path, name) -> None:
    pipe.save_pretrained(tmp_path / "model")
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"no whole pipeline, for it lacks tensors .*; copy it again"):
        load_pipeline(tmp_path / "model.safetensors")


def test_pipeline_that_diffusers_opens_from_no_file_is_refused(tensors, tmp_path) -> None:
    file, index = tmp_path / "model.safetensors", tmp_path / "model" / "model_index.json"
    save_file(tensors, file)
    index.parent.mkdir()
    for kind in ('"DDPMPipeline"', '"NoSuch"', '["own", "Own"]'):
        index.write_text(f'{{"_class_name": {kind}}}')
        with pytest.raises(UnsupportedModelError, match="is no pipeline that diffusers opens from one file"):
            load_pipeline(file)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.ckpt", b"\x80", "a pickled checkpoint, which can run code and is never opened; convert it"),
        ("model.gguf", b"GGUF", r"expected a diffusers folder with model_index.json in it, or a .safetensors"),
        ("model.safetensors", b"", "truncated or damaged"),
        ("lora.safetensors", {"unet.down.lora_A.weight": torch.ones(1)}, "holds LoRA layers, no model; load them into"),
        ("vae.safetensors", {"encoder.conv_in.weight": torch.ones(1)}, "no tensor's name begins with model.diffusion"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_file_that_is_no_checkpoint_is_refused_in_one_sentence(tmp_path, name, content, says) -> None:
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file(content, file)
    with pytest.raises(UnsupportedModelError, match=says) as caught:
        load_pipeline(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
