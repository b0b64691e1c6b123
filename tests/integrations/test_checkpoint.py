from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mixdq.errors import ArtifactFormatError
from mixdq.integrations.checkpoint import check_checkpoint
from mixdq.integrations.checksums import checksums
from mixdq.quant.qparams import activation_qparams
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.linear import QuantizedLinear
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange

LAYERS = ["0", "1"]


@pytest.fixture
def model() -> nn.Module:
    module = nn.Linear(6, 4)
    parts = quantize_weight(module.weight, 4)
    activation = [activation_qparams(ActivationRange(min=-1.0, max=1.0, batches=1), 8)]
    layout = LayerLayout(name="0", bits=LayerBits(weight=4, activation=8))
    layer = QuantizedLinear.from_float(module, layout, parts, activation, None, backend="reference")
    return nn.Sequential(layer, nn.Linear(4, 2), nn.LayerNorm(2))


def saved(folder: Path, tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> str:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name)
    return str(folder / name)


def test_a_whole_checkpoint_passes_in_one_file_or_two_and_with_floats_of_any_width(
    model: nn.Module, tmp_path: Path
) -> None:
    state = model.state_dict()
    check_checkpoint(model, [saved(tmp_path, state)], LAYERS)
    half = {name: t.half() if name.endswith("bias") or name[0] != "0" else t for name, t in state.items()}
    names = list(half)
    first = saved(tmp_path, {name: half[name] for name in names[:3]}, "a.safetensors")
    second = saved(tmp_path, {name: half[name] for name in names[3:]}, "b.safetensors")
    check_checkpoint(model, [first, second], LAYERS)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"0.weight": None}, r"0\.weight is missing"),
        ({"0.weight_scale": None}, r"0\.weight_scale is missing"),
        ({"1.bias": None}, r"1\.bias is missing"),
        ({"0.weight": torch.zeros(4, 6)}, r"0\.weight is F32 \[4, 6\], expected torch.uint8 \[4, 3\]"),
        ({"0.weight": torch.zeros(4, 6, dtype=torch.int8)}, "I8"),
        ({"0.weight_scale": torch.ones(4, 1, dtype=torch.float16)}, "F16"),
        ({"1.weight": torch.zeros(2, 4, dtype=torch.int8)}, "I8"),
        ({"1.weight": torch.zeros(2, 5)}, r"expected torch.float32 \[2, 4\]"),
        ({"1.weight_scale": torch.ones(2, 1)}, "not of this plan"),
        ({"0.bos_output": torch.ones(4)}, "not of this plan"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(
    model: nn.Module, tmp_path: Path, change: dict[str, torch.Tensor | None], complaint: str
) -> None:
    tensors = {name: t for name, t in {**model.state_dict(), **change}.items() if t is not None}
    with pytest.raises(ArtifactFormatError, match=complaint):
        check_checkpoint(model, [saved(tmp_path, tensors)], LAYERS)


def test_tensors_of_nobody_are_left_to_diffusers(model: nn.Module, tmp_path: Path) -> None:
    check_checkpoint(model, [saved(tmp_path, {**model.state_dict(), "ema.decay": torch.ones(1)})], LAYERS)


def test_torn_foreign_and_stray_files_are_refused(model: nn.Module, tmp_path: Path) -> None:
    whole = Path(saved(tmp_path, model.state_dict()))
    torn = tmp_path / "torn.safetensors"
    for size in (0, 4, 100, whole.stat().st_size - 1):
        torn.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(ArtifactFormatError, match="torn"):
            check_checkpoint(model, [str(torn)], LAYERS)
    with pytest.raises(ArtifactFormatError, match="safetensors"):
        check_checkpoint(model, [str(tmp_path / "model.bin")], LAYERS)
    with pytest.raises(ArtifactFormatError, match="outside"):
        check_checkpoint(model, [str(whole), str(tmp_path / ".." / "other" / "b.safetensors")], LAYERS)
    with pytest.raises(ArtifactFormatError, match="outside"):
        check_checkpoint(model, [str(whole), saved(tmp_path / "elsewhere", model.state_dict())], LAYERS)


def test_a_tensor_in_two_files_is_refused(model: nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    files = [saved(tmp_path, state), saved(tmp_path, {"1.bias": state["1.bias"]}, "b.safetensors")]
    with pytest.raises(ArtifactFormatError, match=r"1\.bias is in another file too"):
        check_checkpoint(model, files, LAYERS)


def test_no_files_are_no_model(model: nn.Module) -> None:
    with pytest.raises(ArtifactFormatError, match="from_pretrained"):
        check_checkpoint(model, [], LAYERS)


def test_damage_inside_a_tensor_is_refused(model: nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    whole = {**state, **checksums(state, state)}
    check_checkpoint(model, [saved(tmp_path, whole)], LAYERS)
    with pytest.raises(ArtifactFormatError, match=r"0\.weight in model\.safetensors"):
        check_checkpoint(model, [saved(tmp_path, {**whole, "0.weight": state["0.weight"] ^ 1})], LAYERS)
