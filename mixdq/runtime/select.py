"""Which backend runs a product: the first willing one, in order; every refusal on the way is kept."""

from collections.abc import Mapping, Sequence

from mixdq.errors import ConfigError, NoBackendError
from mixdq.runtime.backends.cpu import CpuBackend
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.backends.fp8 import Fp8Backend
from mixdq.runtime.backends.int_mm import IntMmBackend
from mixdq.runtime.backends.reference import ReferenceBackend
from mixdq.runtime.kernel import Backend, KernelRequest

REFERENCE = ReferenceBackend()

BACKENDS: tuple[Backend, ...] = (CpuBackend(), CudaBackend(), Fp8Backend(), IntMmBackend(), REFERENCE)
"""Every backend, fastest first."""
ONLY_NAMED = ("int_mm", REFERENCE.name)
"""Those that "auto" never chooses."""
ONLY_NAMED_ON_CPU = ("fp8",)
"""Those that it does not choose on a CPU, where they are slow."""

AUTO = "auto"


def select(
    request: KernelRequest, backend: str, backends: Sequence[Backend] = BACKENDS
) -> tuple[Backend, Mapping[str, tuple[str, ...]]]:
    """Return the backend for a request, and the refusals of those that were asked before it.

    `backend` is "auto" (the first willing one that need not be named) or a name, which is then the only one asked.

    Raises:
        ConfigError: there is no such backend.
        NoBackendError: all that were asked refuse; it carries their reasons.
    """
    refusals: dict[str, tuple[str, ...]] = {}
    for candidate in _candidates(backend, backends):
        reasons = candidate.refusals(request)
        if not reasons and backend == AUTO and request.device == "cpu" and candidate.name in ONLY_NAMED_ON_CPU:
            reasons = ["on a CPU it is slow, and runs when it is named"]
        if not reasons:
            return candidate, refusals
        refusals[candidate.name] = tuple(reasons)
    named = [each.name for each in backends if each.name in ONLY_NAMED and not each.refusals(request)]
    raise NoBackendError(_complaint(request, backend, refusals, named), refusals=refusals)


def check_backend(backend: str, backends: Sequence[Backend] = BACKENDS) -> str:
    """Return `backend` if it is "auto" or the name of one; raise ConfigError otherwise."""
    _candidates(backend, backends)
    return backend


def _candidates(backend: str, backends: Sequence[Backend]) -> list[Backend]:
    if backend == AUTO:
        return [candidate for candidate in backends if candidate.name not in ONLY_NAMED]
    named = [candidate for candidate in backends if candidate.name == backend]
    if not named:
        names = ", ".join([AUTO, *(candidate.name for candidate in backends)])
        raise ConfigError(f"backend = {backend!r}: expected one of {names}")
    return named


def _complaint(
    request: KernelRequest, backend: str, refusals: Mapping[str, Sequence[str]], named: Sequence[str]
) -> str:
    what = f"{request.layer} ({request.op}, {request.bits}, {request.device}, {request.dtype})"
    why = "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in refusals.items())
    advice = ""
    if backend == AUTO:
        why = why or "this version has no fast backend"
        ways = [f"--backend {name} (backend={name!r})" for name in named]
        advice = f" What is slower runs when it is named: {', or '.join(ways)}." if ways else ""
    return f"No backend can run {what}: {why}.{advice}"
