"""Whether safetensors files hold what a quantized model expects: by their headers first, then by their checksums."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mixdq.errors import ArtifactFormatError
from mixdq.integrations.checksums import check_checksums
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.layout import EXACT_NAMES

SHOWN = 8

_CODES = {torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32", torch.float32: "F32"}
_FLOATS = ("F16", "BF16", "F32", "F64")


def stored_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape in which files hold a tensor of a model: its own, but flat where it is codes of 8 bits."""
    return (tensor.numel(),) if tensor.dtype == torch.int8 else tuple(tensor.shape)


def check_checkpoint(model: nn.Module, files: Sequence[str], layers: Sequence[str]) -> None:
    """Return if the files hold every tensor of `model` (on meta) as it was saved, with its shape and a suiting dtype.

    Codes, scales and BOS rows have one dtype; all else is any float. Tensors that a layer of the plan (`layers`) does
    not know are refused, others are diffusers' matter. No tensor is read before all headers are right, and none is
    kept: checksums run over the mapped files.

    Raises:
        ArtifactFormatError: anything else; says what, and how many more.
    """
    if not files:
        raise ArtifactFormatError("A MixDQ model is opened from its folder, by from_pretrained; here are no files.")
    found = _headers(files)
    quantized = {name for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
    expected = model.state_dict()
    complaints = []
    for name, tensor in expected.items():
        path, _, kind = name.rpartition(".")
        if name not in found:
            complaints.append(f"{name} is missing")
            continue
        shape, dtype = found[name]
        exact = path in quantized and (kind == "weight" or kind in EXACT_NAMES)
        suits = dtype == _CODES[tensor.dtype] if exact else dtype in _FLOATS or not tensor.dtype.is_floating_point
        if shape != stored_shape(tensor) or not suits:
            complaints.append(f"{name} is {dtype} {list(shape)}, expected {tensor.dtype} {list(stored_shape(tensor))}")
    planned = set(layers)
    complaints += [
        f"{name} is not of this plan" for name in sorted(found.keys() - expected) if name.rpartition(".")[0] in planned
    ]
    if complaints:
        raise ArtifactFormatError(
            f"{files[0]}: {'; '.join(complaints[:SHOWN])}"
            + (f"; and {len(complaints) - SHOWN} more." if len(complaints) > SHOWN else ".")
        )
    try:
        check_checksums(files)
    except SafetensorError as error:
        raise ArtifactFormatError(f"{files[0]}: {error}") from error


def _headers(files: Sequence[str]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return name -> shape and dtype of every tensor in the files."""
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        if ".." in Path(file).parts or Path(file).parent != Path(files[0]).parent:
            raise ArtifactFormatError(f"{file}: a shard outside of the model's folder")
        if not file.endswith(".safetensors"):
            raise ArtifactFormatError(f"{file}: MixDQ models are saved as safetensors, nothing else is opened")
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (no mapping)
                    if name in found:
                        raise ArtifactFormatError(f"{file}: {name} is in another file too")
                    view = opened.get_slice(name)
                    found[name] = (tuple(view.get_shape()), view.get_dtype())
        except SafetensorError as error:
            raise ArtifactFormatError(f"{file}: {error}") from error
    return found
