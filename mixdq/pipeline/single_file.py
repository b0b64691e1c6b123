"""Checkpoints of a whole pipeline in one .safetensors file, as communities share them; opened by diffusers.

Such a file has weights only. The configuration beside them (sizes, tokenizers, scheduler) is that of a folder of the
file's name without its suffix, where there is one, else that of the model that diffusers takes the file for.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config
from safetensors import SafetensorError, safe_open

from mixdq.errors import UnsupportedModelError
from mixdq.pipeline.hub import INDEX_FILE, download_configuration

log = logging.getLogger(__name__)

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""What files that can run code when opened are called."""

_DENOISER = "model.diffusion_model."


def find_configuration(file: Path) -> Path:
    """Return the folder of a checkpoint's configuration; what is missing of it is downloaded.

    Raises:
        UnsupportedModelError: the file is no checkpoint, or is damaged, or its configuration cannot be had.
    """
    shapes = _shapes(file)
    beside = file.with_suffix("")
    if (beside / INDEX_FILE).is_file():
        return beside
    name = fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
    try:
        folder = download_configuration(name)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{file}: needs the configuration, not the weights, of {error}. Or put such a configuration "
            f"({INDEX_FILE} and its folders) into {beside}"
        ) from error
    log.warning(
        "%s: opened with the scheduler of %s; where the checkpoint needs another, as distilled ones do, put its "
        "configuration (%s and its folders) into %s",
        file,
        name,
        INDEX_FILE,
        beside,
    )
    return folder


def open_single_file(file: Path, configuration: Path, dtype: torch.dtype) -> DiffusionPipeline:
    """Return the pipeline of a checkpoint, in `dtype`.

    Raises:
        UnsupportedModelError: the file lacks a part that its configuration names, or diffusers cannot open such files.
    """
    kind = DiffusionPipeline.load_config(configuration).get("_class_name")
    pipeline: Any = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    if not hasattr(pipeline, "from_single_file"):
        raise UnsupportedModelError(
            f"{configuration / INDEX_FILE}: {kind} is no pipeline that diffusers opens from one file"
        )
    try:
        pipe = pipeline.from_single_file(str(file), config=str(configuration), dtype=dtype, local_files_only=True)
        if not _is_whole(pipe):
            raise NotImplementedError
    except SingleFileComponentError as error:
        text = str(error).strip().split("\n")[0]
        raise UnsupportedModelError(f"{file}: no whole pipeline ({text}); name one, or a diffusers folder") from error
    except NotImplementedError as error:
        # diffusers leaves what is not in the file without data, and torch will not cast that.
        raise UnsupportedModelError(
            f"{file}: no whole pipeline, for it lacks tensors that its configuration in {configuration} asks for; "
            "copy it again, or look whether that is its configuration"
        ) from error
    pipe.register_to_config(_name_or_path=str(file))
    return pipe


def _is_whole(pipe: DiffusionPipeline) -> bool:
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return not any(weight.is_meta for part in parts for weight in part.state_dict().values())


def _shapes(file: Path) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a checkpoint as shapes without data; UnsupportedModelError where it can be none."""
    if file.suffix in PICKLES:
        raise UnsupportedModelError(
            f"{file}: a pickled checkpoint, which can run code and is never opened; convert it to safetensors"
        )
    if file.suffix != ".safetensors":
        raise UnsupportedModelError(
            f"{file}: a file; expected a diffusers folder with {INDEX_FILE} in it, or a .safetensors checkpoint"
        )
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            shapes = {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}
    except SafetensorError as error:
        raise UnsupportedModelError(f"{file}: truncated or damaged ({error}); copy it again") from error
    if any("lora" in name.lower() for name in shapes):
        raise UnsupportedModelError(
            f"{file}: holds LoRA layers, no model; load them into their model, pipe.fuse_lora(), and quantize that"
        )
    if not any(name.startswith(_DENOISER) for name in shapes):
        raise UnsupportedModelError(
            f"{file}: no checkpoint of a whole pipeline, for no tensor's name begins with {_DENOISER}; name one, or a "
            "diffusers folder"
        )
    return shapes
