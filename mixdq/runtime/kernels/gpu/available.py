"""Whether Triton works here, on which cards, and what a card is like: asked before anything else of this package."""

import functools
import importlib
import os
import subprocess
from typing import Any

import torch

from mixdq.runtime.kernels.gpu.configurations import Card

LEAST_CAPABILITY = (8, 0)
"""Ampere: for older cards Triton uses no matrix unit."""
INTERPRETER = "TRITON_INTERPRET"
"""Triton's variable: where it is 1, kernels run on the CPU, slowly, and the same code serves for tests."""


def interpreted() -> bool:
    """Return whether Triton interprets its kernels, on tensors of the CPU."""
    return os.environ.get(INTERPRETER) == "1"


def device_type() -> str:
    """Return the type of the device that kernels run on."""
    return "cpu" if interpreted() else "cuda"


@functools.cache
def card(device: torch.device) -> Card:
    """Return what a configuration depends on; a small card of our own where kernels are interpreted."""
    if device.type != "cuda":
        return Card(capability=(9, 0), multiprocessors=8)
    facts = torch.cuda.get_device_properties(device)
    return Card(capability=(facts.major, facts.minor), multiprocessors=facts.multi_processor_count)


def failures() -> tuple[type[Exception], ...]:
    """Return what is raised where a kernel does not compile or start: Triton's errors, its compiler's, the driver's."""
    return importlib.import_module("triton.errors").TritonError, RuntimeError


class _PassingError(Exception):
    """Why it cannot be said now; the text is the answer until then."""


def trouble() -> str | None:
    """Return why no kernel runs on torch's current device, in words; None where they do. A first kernel is made to see.

    The answer is kept for each device, unless it may be another the next time: memory was out, a graph is captured.
    """
    try:
        return _lasting_trouble(torch.cuda.current_device() if torch.cuda.is_available() else None)
    except _PassingError as error:
        return str(error)


@functools.cache
def _lasting_trouble(index: int | None) -> str | None:
    if not interpreted():
        if not torch.cuda.is_available():
            return "there is no NVIDIA GPU that PyTorch sees (torch.cuda.is_available() is False)"
        if torch.version.hip is not None:
            return "PyTorch is one for AMD's GPUs, the kernels are tested on NVIDIA's alone"
        capability = torch.cuda.get_device_capability(index)
        if capability < LEAST_CAPABILITY:
            return (
                f"{torch.cuda.get_device_name(index)} has compute capability {capability[0]}.{capability[1]}; "
                f"the kernels need {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} (Ampere) or newer"
            )
    try:
        errors = importlib.import_module("triton.errors")
        activations = importlib.import_module("mixdq.runtime.kernels.gpu.activations")
    except ImportError as error:
        return f"Triton cannot be imported ({error}): pip install triton"
    except (OSError, RuntimeError, AttributeError) as error:
        return _broken(error)
    if not interpreted() and torch.cuda.is_current_stream_capturing():
        raise _PassingError("a CUDA graph is captured, and no kernel ran yet: call the model once before")
    try:
        return None if _works(activations) else "Triton's first kernel gave a wrong result"
    except (
        *(OSError, RuntimeError, ValueError, AssertionError),
        *(subprocess.SubprocessError, errors.TritonError),
    ) as error:
        # PyTorch's error or the driver's.
        if "out of memory" in str(error):
            raise _PassingError(_broken(error)) from error
        return _broken(error)


def _broken(error: Exception) -> str:
    return f"Triton does not work here: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _works(activations: Any) -> bool:
    device = device_type()
    x = torch.tensor([[[[-1.0, 2.0]]]], device=device)
    ranges = torch.zeros(1, 1, 3, device=device)
    sizes = {"before": "", "silu": False, "block_rows": 2, "block_channels": 1}
    activations.find_ranges[(1,)](x, ranges, None, None, 2, 2, 2, 2, 2, 1, 1, 2, 0, **sizes)
    found: list[float] = ranges.flatten().tolist()
    return found == [-1.0, 2.0, 0.0]
