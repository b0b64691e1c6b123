"""Whether a saved model is still what was saved, by checksums that are saved with it as two tensors.

    mixdq_crc32    uint8 [tensors, 4]   the CRC-32 of every other tensor, in the order of their names over all files
    mixdq_config   uint8 [32]           the SHA-256 of config.json, without keys that begin with "_" and "auto_map"

A CRC-32, highest byte first, runs over the line "name dtype [shape]" and then over the tensor's bytes. Files without
these tensors are opened unchecked. They tell damage, and files of different savings put together; a forger can write
them too. Hence CRC-32: every Python has it, it is fast on any processor, and no flipped bit escapes it. They are no
metadata of the files because safetensors writes that in random order, and saving would not give the same bytes twice.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mixdq.errors import ArtifactFormatError
from mixdq.store.artifact import digest_of

TENSORS, CONFIG = "mixdq_crc32", "mixdq_config"
CHECKSUMS = (TENSORS, CONFIG)
"""Names in the files that are no names of the model."""

SHOWN = 8


def note_config(model: nn.Module) -> None:
    """Let every `model.state_dict()` from now on carry the digest of `model.config` as it then is; once is enough."""
    if _note not in model._state_dict_hooks.values():
        model.register_state_dict_post_hook(_note)  # type: ignore[no-untyped-call]


def checksums(saved: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors to be saved beside `saved`, which was made from `state`, what `model.state_dict()` returned.

    Without the config's digest where `note_config` was never called for that model.
    """
    made = {TENSORS: torch.tensor([_crc32(name, saved[name]) for name in sorted(saved)], dtype=torch.uint8)}
    digest = getattr(state, "_metadata", {}).get("", {}).get(CONFIG)
    return made if digest is None else {**made, CONFIG: _digits(digest)}


def check_checksums(files: Sequence[str]) -> None:
    """Return if all tensors of the files, and the config.json beside them, are as they were saved.

    Raises:
        ArtifactFormatError: they are not, or config.json has a key twice.
        SafetensorError: a tensor cannot be read.
    """
    folder = Path(files[0]).parent
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        where = {name: i for i, handle in enumerate(opened) for name in handle.keys()}  # noqa: SIM118 (no mapping)
        saved = {name: opened[where.pop(name)].get_tensor(name) for name in CHECKSUMS if name in where}
        _check_config(folder / "config.json", saved.get(CONFIG))
        expected = saved.get(TENSORS)
        if expected is None:
            return
        if expected.dtype != torch.uint8 or tuple(expected.shape) != (len(where), 4):
            raise ArtifactFormatError(
                f"{folder}: {TENSORS} is {expected.dtype} {list(expected.shape)}, expected torch.uint8 "
                f"[{len(where)}, 4]: more tensors or fewer than were saved. Get all files again."
            )
        damaged = [
            f"{name} in {Path(files[where[name]]).name}"
            for name, digits in zip(sorted(where), expected.tolist(), strict=True)
            if _crc32(name, opened[where[name]].get_tensor(name)) != digits
        ]
    if damaged:
        more = f" and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        raise ArtifactFormatError(
            f"{folder}: other bytes than were saved, by their checksums: {', '.join(damaged[:SHOWN])}{more}. "
            "Get the files again."
        )


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a model's config, the same for the one in memory and for what config.json holds of it."""
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key != "auto_map"}
    return digest_of(json.loads(json.dumps(kept, default=_plain)))


def _check_config(path: Path, expected: Tensor | None) -> None:
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
        if not isinstance(config, dict):
            raise ValueError("it holds no object")
        whole = expected is None or _digits(config_digest(config)).tolist() == expected.tolist()
    except (ValueError, RecursionError) as error:
        raise ArtifactFormatError(f"{path}: {error}") from error
    if not whole:
        raise ArtifactFormatError(
            f"{path}: changed since it was saved, or not saved with the tensors beside it. Get all files again. "
            "To change a setting, give it to from_pretrained and save the model that opens."
        )


def _note(model: Any, state: Mapping[str, Tensor], prefix: str, notes: dict[str, Any]) -> None:
    notes[CONFIG] = config_digest(model.config)


def _crc32(name: str, tensor: Tensor) -> list[int]:
    line = f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n"
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return list(zlib.crc32(data, zlib.crc32(line.encode())).to_bytes(4, "big"))


def _digits(digest: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)


def _plain(value: Any) -> Any:
    """Return what diffusers writes into config.json for a value that JSON does not know."""
    for method in ("to_dict", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    return str(value)


def _without_twins(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key!r:.80} stands there twice")
        made[key] = value
    return made
