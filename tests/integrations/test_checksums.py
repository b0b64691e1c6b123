import copy
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from mixdq.errors import ArtifactFormatError
from mixdq.integrations.checksums import CONFIG, TENSORS, check_checksums, checksums, config_digest, note_config

NAME = "diffusion_pytorch_model.safetensors"
TENSORS_OF_ALL_KINDS = {
    "b.codes": torch.tensor([[-7, 7, 0], [1, 2, 3]], dtype=torch.int8),
    "a.scale": torch.tensor([[0.5], [1.5]]),
    "c.bias": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
    "d.half": torch.tensor(3.0, dtype=torch.float16),
    "e.none": torch.zeros(0, 4),
}


def written(folder: Path, tensors: dict[str, torch.Tensor], **more: torch.Tensor) -> list[str]:
    """One tensor a file, so that every name has its shard."""
    files = []
    for i, (name, tensor) in enumerate({**tensors, **more}.items()):
        files.append(str(folder / f"{i}.safetensors"))
        save_file({name: tensor.contiguous()}, files[-1])
    return files


@pytest.fixture
def unet() -> Any:
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        norm_eps=3e-6,
    )
    note_config(model)
    note_config(model)
    return model


def saved(model: Any, folder: Path) -> list[str]:
    """What `save_pretrained` of a quantized model does."""
    model.save_config(folder)
    state = model.state_dict()
    save_file({**state, **checksums(state, state)}, folder / NAME)
    return [str(folder / NAME)]


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_the_checksum_is_the_crc32_of_zlib_over_name_dtype_shape_and_the_bytes_of_the_file() -> None:
    found = checksums(TENSORS_OF_ALL_KINDS, {})[TENSORS]
    lines = {
        "a.scale": (b"a.scale float32 [2, 1]\n", np.array([0.5, 1.5], "<f4")),
        "b.codes": (b"b.codes int8 [2, 3]\n", np.array([-7, 7, 0, 1, 2, 3], "i1")),
        "c.bias": (b"c.bias bfloat16 [2]\n", np.array([0x3F80, 0xC000], "<u2")),
        "d.half": (b"d.half float16 []\n", np.array([3.0], "<f2")),
        "e.none": (b"e.none float32 [0, 4]\n", np.array([], "<f4")),
    }
    expected = [list(zlib.crc32(line + data.tobytes()).to_bytes(4, "big")) for line, data in lines.values()]
    assert found.tolist() == expected
    assert found.dtype == torch.uint8


def test_whole_files_pass_in_any_number_and_order(tmp_path: Path) -> None:
    files = written(tmp_path, TENSORS_OF_ALL_KINDS, **checksums(TENSORS_OF_ALL_KINDS, {}))
    check_checksums(files)
    check_checksums(files[::-1])


def test_files_without_checksums_pass(tmp_path: Path) -> None:
    check_checksums(written(tmp_path, TENSORS_OF_ALL_KINDS))


@pytest.mark.parametrize("name", [name for name, tensor in TENSORS_OF_ALL_KINDS.items() if tensor.numel()])
def test_every_flipped_bit_is_seen_and_its_tensor_named(tmp_path: Path, name: str) -> None:
    files = written(tmp_path, TENSORS_OF_ALL_KINDS, **checksums(TENSORS_OF_ALL_KINDS, {}))
    path = tmp_path / f"{list(TENSORS_OF_ALL_KINDS).index(name)}.safetensors"
    whole = path.read_bytes()
    size = TENSORS_OF_ALL_KINDS[name].nbytes
    for bit in range(8 * size):
        spoilt = bytearray(whole)
        spoilt[len(whole) - size + bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        with pytest.raises(ArtifactFormatError, match=rf"{name} in {path.name}\. Get"):
            check_checksums(files)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"a.scale": t["a.scale"].reshape(1, 2)},
        lambda t: t | {"c.bias": t["c.bias"].view(torch.float16)},
        lambda t: t | {"new": torch.ones(1)},
        lambda t: {name: tensor for name, tensor in t.items() if name != "d.half"},
        lambda t: {name.replace("d.half", "d.hald"): tensor for name, tensor in t.items()},
        lambda t: t | {TENSORS: t[TENSORS][:-1]},
        lambda t: t | {TENSORS: t[TENSORS].to(torch.int64)},
        lambda t: t | {TENSORS: torch.tensor(7, dtype=torch.uint8)},
        lambda t: t | {TENSORS: t[TENSORS].flip(1)},
    ],
)
def test_other_shapes_dtypes_names_and_numbers_of_tensors_are_refused(tmp_path: Path, change: Any) -> None:
    tensors = TENSORS_OF_ALL_KINDS | checksums(TENSORS_OF_ALL_KINDS, {})
    with pytest.raises(ArtifactFormatError, match="Get"):
        check_checksums(written(tmp_path, change(tensors)))


def test_the_config_is_known_as_it_is_when_the_model_is_saved(unet: Any, tmp_path: Path) -> None:
    check_checksums(saved(unet, tmp_path))
    unet.register_to_config(sample_size=16)
    state = unet.state_dict()
    save_file({**state, **checksums(state, state)}, tmp_path / NAME)
    with pytest.raises(ArtifactFormatError, match=r"config\.json: changed since it was saved"):
        check_checksums([str(tmp_path / NAME)])
    check_checksums(saved(unet, tmp_path))


def test_a_copy_of_a_model_knows_its_own_config(unet: Any, tmp_path: Path) -> None:
    twin = copy.deepcopy(unet)
    twin.register_to_config(norm_eps=1.0)
    check_checksums(saved(twin, tmp_path))
    (tmp_path / "first").mkdir()
    check_checksums(saved(unet, tmp_path / "first"))


@pytest.mark.parametrize(
    "change", [{"norm_eps": 3.1e-6}, {"sample_size": None}, {"new": 1}, {"block_out_channels": []}]
)
def test_a_changed_config_is_refused(unet: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    files = saved(unet, tmp_path)
    edit(tmp_path, **change)
    with pytest.raises(ArtifactFormatError, match="changed since it was saved"):
        check_checksums(files)


def test_what_diffusers_notes_in_a_config_is_no_change(unet: Any, tmp_path: Path) -> None:
    files = saved(unet, tmp_path)
    edit(tmp_path, _diffusers_version="9.9", _name_or_path="elsewhere", auto_map={"a": "b"})
    check_checksums(files)


def test_a_config_that_is_not_there_is_not_missed(unet: Any, tmp_path: Path) -> None:
    files = saved(unet, tmp_path)
    (tmp_path / "config.json").unlink()
    check_checksums(files)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"a": 1, "a": 1}', "'a' stands there twice"),
        ("[]", "no object"),
        ("{", "Expecting"),
        ("[" * 10**5, "recursion"),
    ],
    ids=lambda text: text[:12],
)
def test_a_config_that_is_none_is_refused_even_without_checksums(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArtifactFormatError, match=complaint):
        check_checksums(written(tmp_path, TENSORS_OF_ALL_KINDS))


def test_the_digest_of_a_config_does_not_depend_on_order_or_on_going_through_json() -> None:
    class Plan:
        def to_dict(self) -> dict[str, int]:
            return {"bits": 4}

    config = {"b": (1, 2), "a": 0.1, "_x": 3, "p": Path("a/b"), "n": np.array([1.5]), "quantization_config": Plan()}
    read = {"quantization_config": {"bits": 4}, "n": [1.5], "p": "a/b", "a": 0.1, "b": [1, 2]}
    assert config_digest(config) == config_digest(read)
    assert config_digest(config) != config_digest({**read, "quantization_config": {"bits": 5}})


def test_a_noted_state_is_an_ordinary_one(unet: Any, tmp_path: Path) -> None:
    torch.save(unet.state_dict(), tmp_path / "state.pt")
    unet.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert CONFIG not in checksums(unet.state_dict(), dict(unet.state_dict()))
    assert set(load_file(saved(unet, tmp_path)[0])) == set(unet.state_dict()) | {CONFIG, TENSORS}
