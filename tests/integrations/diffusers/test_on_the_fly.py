import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixdq.errors import ArtifactFormatError, ConfigError, NonFiniteError
from mixdq.integrations.diffusers import MixDQConfig
from mixdq.pipeline.families.unet import UNetFamily
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.layer import QuantizedLayer
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.plan import LayerBits

WEIGHTS = "diffusion_pytorch_model.safetensors"
RECIPES: list[dict[str, Any]] = [
    {"weight_bits": 8},
    {"weight_bits": 4, "symmetric": False},
    {"weight_bits": 3, "activation_bits": 8, "activations": "dynamic"},
    {"activation_bits": 8, "activations": "dynamic", "number": "float"},
]


@pytest.fixture(scope="module")
def floating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a float UNet."""
    folder = tmp_path_factory.mktemp("float")
    tiny_sdxl_pipeline().unet.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(floating: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(floating, tmp_path / "unet"))


def quantized(folder: Path, *, dtype: torch.dtype | None = None, **recipe: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(
        folder, dtype=dtype, quantization_config=MixDQConfig(**{"backend": "reference", **recipe})
    )


def floats_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d)}


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def inputs() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=draw),
        "timestep": torch.tensor(999),
        "encoder_hidden_states": torch.randn(2, 5, 64, generator=draw),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 32, generator=draw), "time_ids": torch.ones(2, 6)},
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_codes_and_scales_are_those_of_the_float_weights(floating: Path, recipe: dict[str, Any]) -> None:
    float_unet = UNet2DConditionModel.from_pretrained(floating)
    unet = quantized(floating, **recipe)
    widths = LayerBits(weight=recipe.get("weight_bits", 8), activation=recipe.get("activation_bits", 16))
    splits = UNetFamily().input_splits(float_unet)
    assert splits
    for name, module in floats_of(float_unet).items():
        layer = unet.get_submodule(name)
        assert isinstance(layer, QuantizedLayer), name
        bits = replace(widths, number=recipe.get("number", "int") if isinstance(module, nn.Linear) else "int")
        assert (layer.layout.bits, layer.layout.bos) == (bits, False)
        facts = {"symmetric": recipe.get("symmetric", True), "number": bits.number, "splits": splits.get(name, ())}
        expected = quantize_weight(module.weight, bits.weight, **facts)
        assert len(layer.parts()) == len(expected)
        for part, wanted in zip(layer.parts(), expected, strict=True):
            assert torch.equal(part.codes, wanted.codes)
            assert torch.equal(part.qparams.scale.flatten(), wanted.qparams.scale.flatten())
        assert module.bias is None or torch.equal(layer.bias, module.bias)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_it_is_saved_and_opened_bit_identical(floating: Path, tmp_path: Path, recipe: dict[str, Any]) -> None:
    unet = quantized(floating, **recipe)
    unet.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs()).sample, unet(**inputs()).sample)
    assert again.config["quantization_config"].saved == unet.hf_quantizer.quantization_config.saved


def test_shards_give_the_same_model(floating: Path, tmp_path: Path) -> None:
    UNet2DConditionModel.from_pretrained(floating).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    whole, sharded = quantized(floating, weight_bits=4).state_dict(), quantized(tmp_path, weight_bits=4).state_dict()
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in whole.items())


def test_the_files_own_numbers_are_quantized_whatever_dtype_the_rest_is_opened_in(floating: Path) -> None:
    wide, narrow = quantized(floating), quantized(floating, dtype=torch.bfloat16)
    assert (narrow.dtype, narrow.conv_in.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(narrow.conv_in.weight, wide.conv_in.weight)
    assert torch.equal(narrow.conv_in.weight_scale, wide.conv_in.weight_scale)


class FloatsAlive(TorchDispatchMode):
    """Counts the bytes of float tensors that operators made and that are still there; views make none."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: WeakSet[torch.UntypedStorage] = WeakSet()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in () if func.is_view else tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.is_meta:
                self.alive.add(tensor.untyped_storage())
        self.most = max(self.most, sum({s.data_ptr(): s.nbytes() for s in self.alive}.values()))
        return made


@contextmanager
def floats_alive() -> Iterator[FloatsAlive]:
    with FloatsAlive() as counted:
        yield counted


def test_no_second_float_copy_of_the_model_is_ever_there(floating: Path) -> None:
    tensors = load_file(floating / WEIGHTS)
    greatest, total = max(t.nbytes for t in tensors.values()), sum(t.nbytes for t in tensors.values())
    with floats_alive() as counted:
        unet = quantized(floating, weight_bits=4)
    kept = sum(t.nbytes for t in unet.state_dict().values() if t.is_floating_point())
    # One weight at a time: its cast by diffusers, and what `quantize_weight` needs of it in float64 and float32.
    assert counted.most <= kept + 6 * greatest < total


def test_named_modules_stay_in_floating_point(floating: Path, tmp_path: Path) -> None:
    kept = ["conv_in", "time_embedding", "attn2.to_k", "up_blocks.0.resnets.0"]
    unet = quantized(floating, modules_to_not_convert=kept)
    state = UNet2DConditionModel.from_pretrained(floating).state_dict()
    names = floats_of(unet)
    assert {"conv_in", "time_embedding.linear_1", "up_blocks.0.resnets.0.conv1"} < names.keys()
    assert not any("attn2.to_v" in name or "resnets.1" in name for name in names)
    assert all(torch.equal(module.weight, state[f"{name}.weight"]) for name, module in names.items())
    unet.save_pretrained(tmp_path)
    assert floats_of(UNet2DConditionModel.from_pretrained(tmp_path)).keys() == names.keys()


@pytest.mark.parametrize("name", ["con", "attn2.to", "nowhere"])
def test_a_name_that_matches_nothing_is_refused(floating: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*whole parts of a dotted path"):
        quantized(floating, modules_to_not_convert=["conv_in", name])


def test_a_model_of_which_nothing_is_left_is_refused(floating: Path) -> None:
    with pytest.raises(ConfigError, match="no Linear or Conv2d is left"):
        quantized(floating, modules_to_not_convert=list(floats_of(UNet2DConditionModel.from_pretrained(floating))))


class Careful(UNet2DConditionModel):
    _keep_in_fp32_modules = ["time_embedding"]  # noqa: RUF012  (diffusers' own way)


def test_what_diffusers_keeps_in_float32_is_kept(floating: Path) -> None:
    recipe = MixDQConfig(weight_bits=8)
    unet = Careful.from_pretrained(floating, dtype=torch.bfloat16, quantization_config=recipe)
    assert floats_of(unet).keys() == {"time_embedding.linear_1", "time_embedding.linear_2"}
    assert unet.time_embedding.linear_1.weight.dtype == torch.float32
    assert unet.conv_in.bias.dtype == torch.bfloat16


def test_a_transformer_is_quantized_too(tmp_path: Path) -> None:
    transformer = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )
    transformer.save_pretrained(tmp_path)
    recipe = MixDQConfig(weight_bits=8)
    loaded = FluxTransformer2DModel.from_pretrained(tmp_path, quantization_config=recipe)
    assert not floats_of(loaded)
    assert loaded.num_parameters() == transformer.num_parameters()


def test_a_weight_that_is_no_number_names_its_layer(copied: Path) -> None:
    edit(copied, lambda tensors: tensors["conv_out.weight"].view(-1)[:1].fill_(torch.nan))
    with pytest.raises(NonFiniteError, match="conv_out"):
        quantized(copied)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("conv_in.weight"), r"conv_in\.weight is missing"),
        (lambda tensors: tensors.pop("conv_norm_out.bias"), r"conv_norm_out\.bias is missing"),
        (lambda tensors: tensors.update({"conv_in.weight": torch.zeros(3)}), r"conv_in\.weight is F32 \[3\]"),
        (lambda tensors: tensors.update({"conv_in.weight_scale": torch.zeros(3)}), "not of this plan"),
    ],
    ids=["no weight", "no bias of a norm", "another shape", "quantized already"],
)
def test_files_of_another_model_are_refused(copied: Path, change: Any, said: str) -> None:
    edit(copied, change)
    with pytest.raises(ArtifactFormatError, match=said):
        quantized(copied)


def test_pickled_weights_are_refused(floating: Path, tmp_path: Path) -> None:
    UNet2DConditionModel.from_pretrained(floating).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ArtifactFormatError, match="safetensors, nothing else"):
        quantized(tmp_path)


def test_a_folder_that_only_says_what_to_do_is_no_quantized_model(copied: Path) -> None:
    path = copied / "config.json"
    values = json.loads(path.read_text()) | {"quantization_config": MixDQConfig().to_dict()}
    path.write_text(json.dumps(values))
    with pytest.raises(ArtifactFormatError, match="no plan"):
        UNet2DConditionModel.from_pretrained(copied)


def test_a_description_of_another_model_is_no_recipe(floating: Path) -> None:
    done = quantized(floating).hf_quantizer.quantization_config
    with pytest.raises(ConfigError, match="weight_bits=8"):
        UNet2DConditionModel.from_pretrained(floating, quantization_config=done)
