"""Loading pipelines: a folder, a hub id or a pipeline that is loaded already. Only safetensors, never pickles."""

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
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from mixdq.errors import UnsupportedModelError

log = logging.getLogger(__name__)

INDEX_FILE = "model_index.json"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# They warn of the type and the extra key of every AutoencoderTiny that diffusers itself saved.
_TALKERS = ("diffusers.configuration_utils", "diffusers.pipelines.pipeline_utils")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def load_pipeline(
    model: str | Path | DiffusionPipeline,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    variant: str | None = None,
) -> DiffusionPipeline:
    """Return the pipeline in a folder or on the hub, on `device`; a loaded pipeline comes back untouched.

    `dtype` None is float32; `variant` names a set of weight files such as "fp16". Code that a model brings along is
    never run, and pickled weights are never opened.

    Raises:
        UnsupportedModelError: there is no such model, it may not be had, or its files are damaged or pickled.
    """
    if isinstance(model, DiffusionPipeline):
        return model
    name = str(model)
    folder = Path(name).expanduser()
    if folder.exists():
        _check_folder(folder)
        source = str(folder)
    elif isinstance(model, str) and _HUB_ID.fullmatch(name) and not name.startswith("."):
        source = name
    else:
        raise UnsupportedModelError(f"{name}: no such folder, and not a hub id of the form owner/model")
    with _sayable_errors(name), _quiet():
        pipe = DiffusionPipeline.from_pretrained(
            source, dtype=dtype or torch.float32, variant=variant, use_safetensors=True
        )
        return pipe.to(device)


def _check_folder(folder: Path) -> None:
    """Refuse what can be seen to be no pipeline without opening a weight."""
    if not folder.is_dir():
        raise UnsupportedModelError(f"{folder}: a file; expected a diffusers folder with {INDEX_FILE} in it")
    index_file = folder / INDEX_FILE
    if not index_file.is_file():
        raise UnsupportedModelError(f"{folder}: no diffusers pipeline, since it holds no {INDEX_FILE}")
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
    pickled = sorted(file for file in files if file.endswith(_PICKLES))
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
    except GatedRepoError as error:
        raise UnsupportedModelError(
            f"{name}: gated; accept its terms on its hub page, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UnsupportedModelError(f"{name}: no such model on the hub, or it is private") from error
    except (OfflineModeIsEnabled, HfHubHTTPError, ConnectionError) as error:
        raise UnsupportedModelError(_unreachable(name)) from error
    except (OSError, ValueError, AttributeError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise UnsupportedModelError(_reworded(name, error)) from error


def _reworded(name: str, error: Exception) -> str:
    """Return one sentence for the errors that diffusers and transformers have no type for."""
    causes = list(_chain(error))
    text = str(error).strip().split("\n")[0]
    if any(isinstance(cause, GatedRepoError) for cause in causes) or "gated repo" in text:
        return f"{name}: gated; accept its terms on its hub page, then log in with `hf auth login`"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"{name}: no such model on the hub, or it is private"
    if "not fully cached locally" in text or "LocalEntryNotFound" in text:
        return _unreachable(name)
    if "Unable to load weights" in text:
        return f"{name}: a weight file is truncated or damaged; copy it again ({text})"
    return f"{name}: cannot be loaded by diffusers: {text}"


def _unreachable(name: str) -> str:
    return f"{name}: not on this machine, and the hub cannot be reached; download it first or name a local folder"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch the libraries' loading bars off for a while, and what they have to say of an `AutoencoderTiny`."""
    bars: tuple[Any, ...] = (diffusers_logging, transformers_logging)
    shown = [library for library in bars if library.is_progress_bar_enabled()]
    talkers = [logging.getLogger(name) for name in _TALKERS]
    levels = [talker.level for talker in talkers]
    for library in shown:
        library.disable_progress_bar()
    for talker in talkers:
        talker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()
        for talker, level in zip(talkers, levels, strict=True):
            talker.setLevel(level)
