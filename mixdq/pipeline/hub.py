"""Models on the hub: download what is missing, and say in one sentence why a model cannot be had."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from diffusers import DiffusionPipeline
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from mixdq.errors import UnsupportedModelError

INDEX_FILE = "model_index.json"

_CONFIGURATION = ["*.json", "*.txt", "*.model"]
# The hub's errors derive from those of its HTTP library, which is another one from version to version.
_HTTP_ERRORS: Any = tuple(kind for kind in HfHubHTTPError.__mro__ if kind.__module__.startswith(("httpx", "requests")))

_Error = TypeVar("_Error", bound=BaseException)


def download_pipeline(name: str, *, variant: str | None = None) -> Path:
    """Return the folder of a hub model's files on this machine; what is missing comes with diffusers' own progress.

    Raises:
        UnsupportedModelError: the model cannot be had, or is no pipeline, or has pickled weights only.
    """
    with hub_refusals(name):
        return Path(DiffusionPipeline.download(name, variant=variant, use_safetensors=True))


def download_configuration(name: str) -> Path:
    """Return the folder of a hub model's configuration on this machine: all but its weights; raises as above."""
    with hub_refusals(name):
        return Path(snapshot_download(name, allow_patterns=_CONFIGURATION))


@contextmanager
def hub_refusals(name: str) -> Iterator[None]:
    """Turn every reason why the hub does not give `name` into one sentence.

    Raises:
        UnsupportedModelError: what was asked, what came, what to do.
        OSError: the system refused, as where the disk is full.
    """
    try:
        yield
    except (OSError, ValueError, AttributeError, EntryNotFoundError, *_HTTP_ERRORS) as error:
        reason = _reason(name, error)
        if reason is None:
            raise
        raise UnsupportedModelError(f"{name}: {reason}") from error


def _reason(name: str, error: BaseException) -> str | None:
    """Return why the hub does not give a model and what to do, or None for an error of the system's."""
    answer = _first(error, HfHubHTTPError)
    status = getattr(getattr(answer, "response", None), "status_code", None)
    if _first(error, GatedRepoError):
        return (
            f"gated; accept its terms on {constants.ENDPOINT}/{name}, log in with `hf auth login`, and run the same "
            "command again"
        )
    if _first(error, RepositoryNotFoundError):
        return (
            f"no such model on the hub ({constants.ENDPOINT}), or it is private; look at the spelling, or log in with "
            "`hf auth login`"
        )
    if _first(error, RemoteEntryNotFoundError):
        return (
            f"on the hub, but no diffusers pipeline, for it has no {INDEX_FILE}; name a pipeline, or download its "
            "checkpoint and name that file"
        )
    if status == 401:
        return "the hub refuses the access token of this machine; log in again with `hf auth login`"
    if status == 403:
        return "the hub forbids it to the access token of this machine; log in with another by `hf auth login`"
    if status == 429:
        return "the hub has had too many requests from here; wait a few minutes and run the same command again"
    if answer is not None:
        return f"the hub answers with status {status}; run the same command again later"
    if _first(error, OfflineModeIsEnabled):
        return "not whole on this machine, and HF_HUB_OFFLINE forbids to ask the hub; unset it, or name a local folder"
    if getattr(error, "errno", None) is not None and not isinstance(error, ConnectionError):
        return None
    text = str(error).strip().split("\n")[0]
    if "`safetensors` weights" in text:
        return (
            "has pickled weights only, which can run code and are never opened; name a model with safetensors weights, "
            "or convert them"
        )
    if isinstance(error, ValueError | AttributeError):
        return f"cannot be opened by diffusers: {text}"
    return (
        f"not whole on this machine, and the hub ({constants.ENDPOINT}) cannot be reached; look at the network, "
        "or name a local folder"
    )


def _first(error: BaseException | None, kind: type[_Error]) -> _Error | None:
    """Return the first error of a kind among an error and its causes."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None
