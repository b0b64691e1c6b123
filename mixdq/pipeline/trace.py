"""Recorded runs of a denoiser: what went in and came out, kept so that parts can be run again.

A trace also keeps the text embeddings, so that pictures are made again without the text encoders. All of it lies on
the CPU, in the model's own types: replaying an unchanged denoiser gives the recorded outputs bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from mixdq.pipeline.family import ModelFamily
from mixdq.pipeline.generate import GenerationSpec, check_pictures, sample
from mixdq.types.progress import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class DenoiserCall:
    """One call of the denoiser: its arguments, and its output [batch, ...]."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor


@dataclass(frozen=True, kw_only=True)
class TraceBatch:
    """Pictures first .. first + count - 1: their text embeddings as the pipeline takes them, and their calls."""

    first: int
    count: int
    embeddings: Mapping[str, Tensor]
    calls: tuple[DenoiserCall, ...]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A run of the pipeline, and the pictures [prompts, 3, height, width] in 0..1 that it made."""

    spec: GenerationSpec
    batches: tuple[TraceBatch, ...]
    pictures: Tensor

    @property
    def calls(self) -> tuple[DenoiserCall, ...]:
        """All calls, batch by batch and step by step."""
        return tuple(call for batch in self.batches for call in batch.calls)


def record_calls(
    pipe: DiffusionPipeline,
    family: ModelFamily,
    prompts: Sequence[str],
    spec: GenerationSpec,
    *,
    batch_size: int = 8,
    progress: Progress = no_progress,
) -> Trace:
    """Return a trace of the pipeline on `prompts`; its pictures are those of `generate` with the same batch size.

    Raises:
        NonFiniteError: a picture holds NaN or infinity.
    """
    if not prompts:
        raise ValueError("no prompts")
    denoiser = family.denoiser(pipe)
    batches, pictures = [], []
    for first in range(0, len(prompts), batch_size):
        batch = list(prompts[first : first + batch_size])
        with torch.no_grad():
            embeddings: dict[str, Any] = family.encode(pipe, batch, spec.guidance_scale)
        with _recording(denoiser) as calls:
            pictures.append(sample(pipe, spec, first, len(batch), "pt", **embeddings))
        kept = {name: value.detach().to("cpu", copy=True) for name, value in embeddings.items()}
        batches.append(TraceBatch(first=first, count=len(batch), embeddings=kept, calls=tuple(calls)))
        progress(first + len(batch), len(prompts), "recording")
    trace = Trace(spec=spec, batches=tuple(batches), pictures=torch.cat(pictures))
    check_pictures(trace.pictures, prompts)
    return trace


def replay(denoiser: nn.Module, call: DenoiserCall, *, gradient: bool = False) -> Tensor:
    """Return what the denoiser gives now for the arguments of a recorded call, on the CPU; `gradient`: see `sample`."""
    device = next(denoiser.parameters()).device
    return replay_there(denoiser, moved(call, device), gradient=gradient).to("cpu")


def replay_there(denoiser: nn.Module, call: DenoiserCall, *, gradient: bool = False) -> Tensor:
    """Return the same on the denoiser's device, where the arguments must be: nothing moves, and nothing waits."""
    with torch.set_grad_enabled(gradient):
        output: Tensor = denoiser(*call.args, **call.kwargs)[0]
    return output


def moved(call: DenoiserCall, device: torch.device) -> DenoiserCall:
    """Return a call with its arguments on a device."""

    def there(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    return replace(call, args=_mapped(call.args, there), kwargs=_mapped(dict(call.kwargs), there))


def regenerate(pipe: DiffusionPipeline, trace: Trace) -> Tensor:
    """Return the pictures [prompts, 3, height, width] that the pipeline makes now from the trace's embeddings.

    Every step is run with the denoiser as it is; text encoders are not. Unchanged, it gives `trace.pictures`.
    """
    return torch.cat([regenerate_batch(pipe, trace.spec, batch) for batch in trace.batches])


def regenerate_batch(
    pipe: DiffusionPipeline, spec: GenerationSpec, batch: TraceBatch, *, gradient: bool = False
) -> Tensor:
    """Return the pictures of one batch, [batch.count, 3, height, width]; `gradient` as in `sample`."""
    device = pipe._execution_device
    embeddings: dict[str, Any] = {name: value.to(device) for name, value in batch.embeddings.items()}
    return sample(pipe, spec, batch.first, batch.count, "pt", gradient=gradient, **embeddings)


@contextmanager
def _recording(denoiser: nn.Module) -> Iterator[list[DenoiserCall]]:
    calls: list[DenoiserCall] = []
    # Steps share their embeddings, so one copy of each tensor is enough. The tensor is kept too, so that no other takes
    # its id; its version tells whether it was written to since.
    copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def kept(tensor: Tensor) -> Tensor:
        key = (id(tensor), tensor._version)
        if key not in copies:
            copies[key] = (tensor, tensor.detach().to("cpu", copy=True))
        return copies[key][1]

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(DenoiserCall(args=_mapped(args, kept), kwargs=_mapped(kwargs, kept), output=kept(output[0])))

    handle = denoiser.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a copy of nested tuples, lists and dicts with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, change) for item in value)
    return value
