"""What this machine has, and which backends work on it."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping

import torch

from mixdq.runtime.kernel import KernelRequest
from mixdq.runtime.kernels import native
from mixdq.runtime.select import BACKENDS
from mixdq.types.layers import Op
from mixdq.types.plan import LayerBits

_SHAPES: dict[Op, tuple[int, ...]] = {"linear": (64, 64), "conv2d": (64, 64, 3, 3)}


def diagnose() -> tuple[dict[str, str], dict[str, Mapping[Op, list[str]]]]:
    """Return facts of the machine, and backend -> kind of layer -> refusals of a plain W8A8 one (empty: it works)."""
    return machine_facts(), {
        backend.name: {op: backend.refusals(_request(op)) for op in _SHAPES} for backend in BACKENDS
    }


def machine_facts() -> dict[str, str]:
    """Return name -> value: what a number measured here should be read with."""
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: importlib.metadata.version(name) for name in ("diffusers", "transformers", "scipy")},
        "cores": str(os.cpu_count()),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpu kernels": native.description(),
        "device": device_name(),
    }
    return {name: value for name, value in facts.items() if value}


def device_name() -> str:
    """Return the accelerator's name, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _request(op: Op) -> KernelRequest:
    return KernelRequest(
        layer="probe",
        op=op,
        bits=LayerBits(weight=8, activation=8),
        weight_shape=_SHAPES[op],
        padding=(1, 1) if op == "conv2d" else (0, 0),
        device="cuda" if torch.cuda.is_available() else "cpu",
        dtype=torch.float32,
        output_dtype=torch.float32,
    )
