"""A denoiser that is launched as one CUDA graph: captured for every set of its inputs' shapes, replayed from then on.

A call is captured when it comes a second time and is found to change nothing in the denoiser and to wait for nothing;
both times it runs as ever, from the buffers of the graph. A graph knows addresses alone, so after each replay, while
the GPU works, everything that the captured call may have used is looked at (`mixdq.runtime.snapshot`). Where anything
differs the result is thrown away, all graphs go, and the call begins anew. Hooks on the denoiser itself run before and
after, as ever. What cannot be captured runs as ever too, and a warning names the reason, once.
"""

import inspect
import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten

from mixdq.errors import ConfigError, MixDQError
from mixdq.runtime.capture import Call, CudaRecorder, Recorder, signature_of
from mixdq.runtime.obstacles import Waits, obstacle_of_call, obstacle_of_denoiser
from mixdq.runtime.snapshot import Snapshot

log = logging.getLogger(__name__)

MOST_GRAPHS = 8
"""As many sets of shapes are kept, those used last."""

TIMESTEP = "timestep"
"""An argument that diffusers' denoisers take as a number, too, and bring to their device themselves."""


def use_graphs(denoiser: nn.Module, recorder: type[Recorder] = CudaRecorder) -> None:
    """Have calls of a denoiser captured and replayed; once is enough.

    Raises:
        ConfigError: something else stands in the place of its `forward`.
    """
    forward = vars(denoiser).get("forward")
    graphs = forward if isinstance(forward, Graphs) else Graphs(denoiser, recorder)
    if forward not in (None, graphs) or denoiser._compiled_call_impl is not None:
        raise ConfigError(
            f"{type(denoiser).__name__} is offloaded, cached, or compiled as a whole, which would stand between its "
            "caller and its graphs. Undo that (pipe.remove_all_hooks(), disable_cache()); compile single blocks "
            "(compile_repeated_blocks), which graphs then contain."
        )
    vars(denoiser).update(forward=graphs, _apply=graphs._apply)


def remove_graphs(denoiser: nn.Module) -> None:
    """Undo `use_graphs`, and free all that graphs hold; a denoiser without any stays as it is."""
    apply = vars(denoiser).pop("_apply", None)
    if apply is not None:
        apply.__self__.clear()
    if isinstance(vars(denoiser).get("forward"), Graphs):
        del denoiser.forward


class Graphs:
    """The `forward` of one denoiser. Copies and pickles of it are the denoiser's copy's, and have no graph."""

    def __init__(self, denoiser: nn.Module, recorder: type[Recorder]) -> None:
        self._denoiser, self._recorder = denoiser, recorder
        names = list(inspect.signature(self.__wrapped__).parameters)
        self._timestep_place = names.index(TIMESTEP) if TIMESTEP in names else len(names)
        self._calls: list[Call] = []
        self._said: set[str] = set()
        self._lock = RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._denoiser, self._recorder)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The `forward` of the denoiser's class, whose signature this has too."""
        return partial(type(self._denoiser).forward, self._denoiser)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the denoiser's own `forward` does: from a graph, fresh tensors in the same structure."""
        as_ever = partial(type(self._denoiser).forward, self._denoiser, *args, **kwargs)
        # Whoever wrapped this method may keep it when graphs are removed.
        is_removed = "_apply" not in vars(self._denoiser)
        if torch.compiler.is_compiling() or is_removed or _others_capture():
            return as_ever()
        leaves, form = tree_flatten(self._on_device(args, kwargs))
        reason = obstacle_of_call(leaves, self._recorder.device_type)
        if vars(self._denoiser).get("forward") is not self:
            reason = "it is offloaded or cached"
        if reason:
            self._say(reason)
            return as_ever()
        with self._lock:
            return self._run(leaves, form, as_ever)

    def clear(self) -> None:
        """Let all graphs go, and all that they hold."""
        with self._lock:
            self._calls.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move or cast the denoiser, whose method of this name this is; nothing holds its old memory then."""
        self.clear()
        moved: nn.Module = type(self._denoiser)._apply(self._denoiser, fn, recurse)  # type: ignore[no-untyped-call]
        return moved

    def _run(self, leaves: list[Any], form: TreeSpec, as_ever: Callable[[], Any]) -> Any:
        call = self._find(leaves, form)
        if call is None:
            return self._first(leaves, form, as_ever)
        result = call.recorder.run(partial(call.again, leaves)) if call.replay else None
        # The GPU works meanwhile: what a stale graph reads is still there.
        if not call.snapshot.holds():
            self.clear()
            return self._first(leaves, form, as_ever)
        if call.replay:
            return result
        return as_ever() if call.barred else self._second(call, leaves)

    def _first(self, leaves: list[Any], form: TreeSpec, as_ever: Callable[[], Any]) -> Any:
        """Run a call from buffers, with all that is done once, such as to compile kernels."""
        device = _device_of(leaves)
        reason = obstacle_of_denoiser(self._denoiser, device)
        if reason:
            self._say(reason)
            return as_ever()
        same = [each for each in self._calls if each.recorder.device == device]
        recorder = same[0].recorder if same else self._recorder(device)
        call = Call(self.__wrapped__, leaves, form, recorder)
        result = recorder.run(partial(call.run, leaves))
        call.snapshot = Snapshot(self._denoiser, self)
        if not all(each.snapshot.same_as(call.snapshot) for each in self._calls):
            self.clear()
            return result
        self._calls.append(call)
        del self._calls[:-MOST_GRAPHS]
        return result

    def _second(self, call: Call, leaves: list[Any]) -> Any:
        """Run a call once more, and capture it where nothing speaks against it."""
        run = partial(call.recorder.run, partial(call.run, leaves))
        is_compiled = any(module._compiled_call_impl is not None for module in self._denoiser.modules())
        with Waits(call.recorder.device) as waits, _uncompiled() if is_compiled else nullcontext():
            result = run()
        if is_compiled:
            result = run()
        if not call.snapshot.holds():
            self._say("a call changes something in the denoiser, which the next one may read")
            self.clear()
        elif waits.found:
            self._bar(call, f"such a call waits for the device ({', '.join(waits.found)})")
        else:
            try:
                call.capture()
            except (RuntimeError, MixDQError) as error:
                self._bar(call, f"such a call cannot be captured ({' '.join(str(error).split())[:300]})")
        return result

    def _find(self, leaves: list[Any], form: TreeSpec) -> Call | None:
        """Return the call of the same signature, which is the last one used then."""
        signature = signature_of(leaves, form)
        for call in self._calls:
            if call.signature == signature:
                self._calls.remove(call)
                self._calls.append(call)
                return call
        return None

    def _bar(self, call: Call, reason: str) -> None:
        call.barred = True
        self._say(reason)

    def _say(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            log.warning("%s runs without a CUDA graph: %s", type(self._denoiser).__name__, reason)

    def _on_device(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the timestep on the denoiser's device: graphs make no tensors of numbers."""
        device = next((one.device for one in self._denoiser.parameters()), None)
        if device is None:
            return args, kwargs
        if TIMESTEP in kwargs:
            return args, {**kwargs, TIMESTEP: _moved(kwargs[TIMESTEP], device)}
        places = range(len(args))
        return tuple(_moved(args[i], device) if i == self._timestep_place else args[i] for i in places), kwargs


def _device_of(leaves: list[Any]) -> torch.device:
    return next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))


def _moved(timestep: Any, device: torch.device) -> Any:
    """Return a timestep as a tensor on a device, without waiting for it."""
    if isinstance(timestep, Tensor):
        return timestep.to(device, non_blocking=True)
    if isinstance(timestep, int | float):
        dtype = torch.float64 if isinstance(timestep, float) else torch.int64
        return torch.full((), timestep, dtype=dtype, device=device)
    return timestep


def _uncompiled() -> Any:
    """Return a context in which compiled blocks run as they are written, so that operators are seen."""
    return torch.compiler.set_stance("force_eager")


def _others_capture() -> bool:
    """Return whether whoever calls captures a graph by hand."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
