"""Whatever befalls a saved model, it is refused or it is the same; `python -m benchmarks.fuzz` asks far more often."""

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mixdq.errors import ArtifactFormatError, MixDQError
from mixdq.integrations.checkpoint import check_checkpoint
from mixdq.integrations.saved_format import from_json, to_json

GOLDEN = Path(__file__).parent / "golden" / "v1"
CONFIG = "config.json"
BEFORE_US = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What diffusers, safetensors and json raise where they meet the damage first."""

Change = Callable[[bytes, int, bytes], bytes]
CHANGES: dict[str, Change] = {
    "flip": lambda data, at, by: data[:at] + bytes([data[at] ^ (by[0] or 1)]) + data[at + 1 :],
    "overwrite": lambda data, at, by: data[:at] + by + data[at + len(by) :],
    "insert": lambda data, at, by: data[:at] + by + data[at:],
    "delete": lambda data, at, by: data[:at] + data[at + len(by) :],
    "cut": lambda data, at, by: data[:at],
}
DAMAGE = st.tuples(
    st.integers(0, 10),
    st.sampled_from(sorted(CHANGES)),
    # Half of the damage in what says what the rest is.
    st.one_of(st.integers(0, 9000), st.integers(0, 200_000)),
    st.binary(min_size=1, max_size=32),
)

ANY_VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["W4A8", "W2A3", "W16A8", "W8A8 float", "conv_in", "mixdq", "dynamic"]),
    st.recursive(st.none() | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


class Saved:
    """A copy of a golden model's folder, and what it holds when it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = [str(file) for file in sorted(folder.glob("*.safetensors"))]
        self.paths = [*map(Path, self.files), folder / CONFIG]
        self.whole = {path: path.read_bytes() for path in self.paths}
        self.unet = UNet2DConditionModel.from_pretrained(folder)
        self.layers = list(json.loads(self.whole[folder / CONFIG])["quantization_config"]["plan"]["layers"])
        self.tensors, self.config = self.read()

    def read(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the model's tensors and config as they lie in the files now."""
        found = {name: tensor for file in self.files for name, tensor in load_file(file).items()}
        config = json.loads((self.folder / CONFIG).read_text())
        mine = self.unet.state_dict().keys()
        return {name: found[name] for name in mine}, {key: v for key, v in config.items() if key[0] != "_"}

    def is_whole(self) -> bool:
        """Return whether the files hold the same model as ever, to the last bit."""
        tensors, config = self.read()
        return config == self.config and all(
            tensor.dtype == self.tensors[name].dtype
            and tensor.shape == self.tensors[name].shape
            and tensor.numpy().tobytes() == self.tensors[name].numpy().tobytes()
            for name, tensor in tensors.items()
        )

    @contextmanager
    def spoilt(self, which: int, change: str, at: int, by: bytes) -> Iterator[None]:
        """Spoil one file for a while."""
        path = self.paths[which % len(self.paths)]
        data = self.whole[path]
        try:
            path.write_bytes(CHANGES[change](data, at % len(data), by))
            yield
        finally:
            path.write_bytes(data)


@pytest.fixture(scope="module", params=["sdxl", "sd"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp(request.param) / "unet"
    return Saved(Path(shutil.copytree(GOLDEN / request.param / "unet", folder)))


@settings(max_examples=60)
@given(damage=DAMAGE)
def test_spoilt_files_are_refused_by_our_check_or_are_the_same(saved: Saved, damage: Any) -> None:
    with saved.spoilt(*damage):
        try:
            check_checkpoint(saved.unet, saved.files, saved.layers)
        except ArtifactFormatError:
            return
        assert saved.is_whole()


@settings(max_examples=15)
@given(damage=DAMAGE)
def test_diffusers_opens_a_spoilt_folder_as_the_same_model_or_not_at_all(saved: Saved, damage: Any) -> None:
    with saved.spoilt(*damage):
        try:
            unet = UNet2DConditionModel.from_pretrained(saved.folder, allow_pickle=False)
        except (MixDQError, *BEFORE_US):
            return
        state = saved.unet.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in unet.state_dict().items())
        assert saved.is_whole()


def written() -> dict[str, Any]:
    """The `quantization_config` of a golden model, with a few layers only."""
    config = json.loads((GOLDEN / "sd" / "unet" / CONFIG).read_text())["quantization_config"]
    joined = next(iter(config["input_splits"]))
    kept = [joined, *config["bos_layers"][:2], "conv_in"]
    config["plan"]["layers"] = {name: config["plan"]["layers"][name] for name in kept}
    config["input_splits"] = {joined: config["input_splits"][joined]}
    config["bos_layers"] = config["bos_layers"][:2]
    return config


def places(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything that lies in `value`."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield (*path, step)
        yield from places(inner, *path, step)


@settings(max_examples=150)
@given(
    path=st.sampled_from(sorted(places(written()), key=str)),
    change=st.sampled_from(["set", "delete", "add"]),
    value=ANY_VALUE,
)
def test_any_quantization_config_is_refused_or_says_what_it_is(path: Any, change: str, value: Any) -> None:
    config = copy.deepcopy(written())
    *steps, last = path
    place: Any = config
    for step in steps:
        place = place[step]
    if change == "set":
        place[last] = value
    elif change == "delete":
        del place[last]
    elif isinstance(place, dict):
        place[str(value)] = place[last]
    try:
        saved, backend = from_json(config)
    except ArtifactFormatError:
        return
    assert from_json(json.loads(json.dumps(to_json(saved, backend)))) == (saved, backend)
