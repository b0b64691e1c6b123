"""What this machine has, and which backends work on it."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping

import torch

from mixdq.runtime.kernel import KernelRequest
from mixdq.runtime.kernels import compiler, native, processor
from mixdq.runtime.select import BACKENDS, select
from mixdq.types.layers import Op
from mixdq.types.plan import FLOAT_BITS, LayerBits

_SHAPES: dict[Op, tuple[int, ...]] = {"linear": (64, 64), "conv2d": (64, 64, 3, 3)}
PLAIN = (LayerBits(weight=8, activation=8),)
FLOATS = (LayerBits(weight=8, activation=8, number="float"),)


def diagnose() -> tuple[dict[str, str], dict[str, Mapping[Op, list[str]]]]:
    """Return facts of the machine, and backend -> kind of layer -> refusals of a plain W8A8 one (empty: it works).

    "fp8" is asked of W8A8 float.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return machine_facts(), {
        backend.name: {
            op: backend.refusals(_request(op, bits, device, torch.float32))
            for op in _SHAPES
            for bits in (FLOATS if backend.name == "fp8" else PLAIN)
        }
        for backend in BACKENDS
    }


def check_backend_works(backend: str, device: str, dtype: torch.dtype, widths: Iterable[LayerBits] = PLAIN) -> None:
    """Return if a backend, or one of those that "auto" means, runs plain layers of `widths` there.

    Asked before long work. Floats are asked of Linear layers alone.

    Raises:
        NoBackendError: none does; it carries the reasons.
        ConfigError: there is no such backend.
    """
    for bits in dict.fromkeys(widths):
        for op in _SHAPES:
            if bits.weight != FLOAT_BITS and not (bits.is_float and op == "conv2d"):
                select(_request(op, bits, torch.device(device).type, dtype), backend)


def machine_facts() -> dict[str, str]:
    """Return name -> value: what a number measured here should be read with."""
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: importlib.metadata.version(name) for name in ("diffusers", "transformers", "scipy")},
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpu features": processor.description(),
        "c compiler": _compiler(),
        "cpu kernels": _cpu_kernels(),
        "device": device_name(),
        "gpu": _gpu(),
        "driver": _driver() if torch.cuda.is_available() else "",
        "triton": _version("triton"),
    }
    return {name: value for name, value in facts.items() if value}


def device_name() -> str:
    """Return the accelerator's name, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return ""
    facts = torch.cuda.get_device_properties()
    chip = f"sm_{facts.major}{facts.minor}, {facts.multi_processor_count} multiprocessors"
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return f"{chip}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, cuDNN {cudnn}"


@functools.cache
def _driver() -> str:
    """Return the version of NVIDIA's driver, as its own tool says; nothing where that does not."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    # A line for each GPU.
    return said.strip().partition("\n")[0]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _compiler() -> str:
    try:
        return " ".join(compiler.find())
    except compiler.CompilerError:
        return "none"


def _cpu_kernels() -> str:
    without = "; without them `--backend cpu` is refused, and `--backend reference` runs: as exact, but not fast"
    return native.description() + (without if native.trouble() else "")


def _request(op: Op, bits: LayerBits, device: str, dtype: torch.dtype) -> KernelRequest:
    return KernelRequest(
        layer="probe",
        op=op,
        bits=bits,
        weight_shape=_SHAPES[op],
        padding=(1, 1) if op == "conv2d" else (0, 0),
        device=device,
        dtype=dtype,
        output_dtype=dtype,
    )
