"""Loading pipelines: a folder, a hub id, a checkpoint or a loaded pipeline. Only safetensors, never pickles."""

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from mixdq.errors import UnsupportedModelError
from mixdq.pipeline.hub import INDEX_FILE, download_pipeline
from mixdq.pipeline.single_file import PICKLES, find_configuration, open_single_file

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# They warn of the type and the extra key of every AutoencoderTiny that diffusers itself saved.
_TALKERS = ("diffusers.configuration_utils", "diffusers.pipelines.pipeline_utils")


def load_pipeline(
    model: str | Path | DiffusionPipeline,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    variant: str | None = None,
) -> DiffusionPipeline:
    """Return the pipeline in a folder, in a checkpoint file or on the hub, on `device`.

    A loaded pipeline comes back untouched. `dtype` None is float32; `variant` names a set of weight files such as
    "fp16". Code that a model brings along is never run, and pickled weights are never opened. Downloads show the
    hub's own progress.

    Raises:
        UnsupportedModelError: there is no such model, it may not be had, or its files are damaged or pickled.
    """
    if isinstance(model, DiffusionPipeline):
        return model
    name, dtype = str(model), dtype or torch.float32
    path = Path(name).expanduser()
    if path.is_file():
        with _without_talk():
            configuration = find_configuration(path)
        with _sayable_errors(name), _without_bars(), _without_talk():
            return open_single_file(path, configuration, dtype).to(device)
    if path.exists():
        _check_folder(path)
        source = path
    elif isinstance(model, str) and _HUB_ID.fullmatch(name) and not name.startswith("."):
        with _without_talk():
            source = download_pipeline(name, variant=variant)
    else:
        raise UnsupportedModelError(
            f"{name}: no such folder or file, and not a hub id, which is of the form owner/model; look at the spelling"
        )
    with _sayable_errors(name), _without_bars(), _without_talk():
        pipe = DiffusionPipeline.from_pretrained(str(source), dtype=dtype, variant=variant, use_safetensors=True)
        pipe.register_to_config(_name_or_path=name)
        return pipe.to(device)


def _check_folder(folder: Path) -> None:
    """Refuse what can be seen to be no pipeline without opening a weight."""
    index_file = folder / INDEX_FILE
    if not index_file.is_file():
        raise UnsupportedModelError(
            f"{folder}: no diffusers pipeline, since it holds no {INDEX_FILE}; name the folder that does, "
            "or a .safetensors checkpoint"
        )
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{index_file}: not a JSON file; copy the model again") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise UnsupportedModelError(f"{index_file}: names no pipeline class of diffusers")
    for component, kind in index.items():
        if isinstance(kind, list) and any(kind):
            _check_component(folder, component)


def _check_component(folder: Path, component: str) -> None:
    place = folder / component
    if not place.is_dir():
        raise UnsupportedModelError(f"{folder}: its folder {component}/ is missing; copy the model again")
    files = os.listdir(place)
    pickled = sorted(file for file in files if file.endswith(PICKLES))
    if pickled and not any(file.endswith(".safetensors") for file in files):
        raise UnsupportedModelError(
            f"{place}: has pickled weights only ({pickled[0]}), which can run code and are never opened; "
            "convert them to safetensors"
        )


@contextmanager
def _sayable_errors(name: str) -> Iterator[None]:
    """Turn what the libraries raise about a model's files into one sentence each."""
    try:
        yield
    except SafetensorError as error:
        raise UnsupportedModelError(
            f"{name}: a weight file is truncated or damaged ({error}); copy it again"
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        text = str(error).strip().split("\n")[0]
        if "Unable to load weights" in text:
            raise UnsupportedModelError(
                f"{name}: a weight file is truncated or damaged; copy it again ({text})"
            ) from error
        raise UnsupportedModelError(f"{name}: cannot be loaded by diffusers: {text}") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Switch the libraries' bars for loading off for a while."""
    bars: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    shown = [library for library in bars if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


@contextmanager
def _without_talk() -> Iterator[None]:
    """Have the libraries not say for a while what our errors say too, or what means nothing."""
    talkers = [logging.getLogger(name) for name in _TALKERS]
    levels = [talker.level for talker in talkers]
    for talker in talkers:
        talker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for talker, level in zip(talkers, levels, strict=True):
            talker.setLevel(level)
