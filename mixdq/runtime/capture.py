"""Calls that a GPU is given once and does again and again, from buffers of their own: CUDA graphs.

A graph holds addresses, and whoever replays it keeps the tensors alive that it reads: `mixdq.runtime.snapshot`.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_map_only, tree_unflatten

from mixdq.runtime.snapshot import Snapshot

T = TypeVar("T")


class Recorder(Protocol):
    """What records a call on one device and does it again, on the same tensors."""

    device_type: ClassVar[str]
    device: torch.device

    def __init__(self, device: torch.device) -> None: ...

    def run(self, call: Callable[[], T], /) -> T:
        """Return what `call`, which may be a replay, gives, in fresh tensors."""
        ...

    def record(self, call: Callable[[], T], /) -> tuple[Callable[[], None], T]:
        """Return what does again all that `call` does, and the tensors that it then leaves its results in.

        Raises RuntimeError where it does something that cannot be recorded.
        """
        ...


class CudaRecorder:
    """CUDA graphs of one memory pool. All runs on one stream, so that they never meet in that memory."""

    device_type: ClassVar[str] = "cuda"

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def run(self, call: Callable[[], T]) -> T:
        """Return what `call` gives, copied on the caller's stream; nothing waits but one stream for the other."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        # Of the last run, which may have been another stream's.
        self._stream.wait_event(self._copied)
        with torch.cuda.stream(self._stream):
            result = call()
        current.wait_stream(self._stream)
        copies = fresh(result)
        self._copied.record(current)
        return copies

    def record(self, call: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Return the replay of a CUDA graph; no kernel runs now."""
        graph = torch.cuda.CUDAGraph()
        capture = torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local")
        try:
            # The outer one comes back to the caller's stream where the inner one fails to.
            with torch.cuda.stream(self._stream), capture:
                result = call()
        except BaseException:
            self._give_up()
            raise
        return graph.replay, result

    def _give_up(self) -> None:
        """Have torch's allocator leave a capture that CUDA ended, as `torch.cuda.graph` does not; take a new pool."""
        pool, self._pool = self._pool, torch.cuda.graph_pool_handle()
        if hasattr(torch._C, "_cuda_endAllocateToPool"):
            with suppress(RuntimeError):  # It has left it, so nothing is to be released.
                torch._C._cuda_endAllocateToPool(self.device.index, pool)
                torch._C._cuda_releasePool(self.device.index, pool)


def repeatable(call: Callable[[], object], recorder: Recorder) -> Callable[[], object]:
    """Return what does again all that `call` does, on the same tensors, and keeps the call; it runs twice before.

    Raises what `Recorder.record` does.
    """
    for _ in range(2):
        recorder.run(call)
    replay, result = recorder.record(call)
    kept = result, call

    def again() -> object:
        replay()
        return kept[0]

    return again


def fresh(result: T) -> T:
    """Return nested results with every tensor copied."""
    copies: T = tree_map_only(Tensor, Tensor.clone, result)
    return copies


class Call:
    """A call of one signature: the buffers of its inputs, what it depended on, and its graph once there is one."""

    snapshot: Snapshot
    barred = False
    replay: Callable[[], None] | None = None
    result: Any = None

    def __init__(self, forward: Callable[..., Any], leaves: Sequence[Any], form: TreeSpec, recorder: Recorder) -> None:
        self.signature = signature_of(leaves, form)
        self.recorder = recorder
        self._forward, self._form = forward, form
        self._buffers: list[Any] = []

    def run(self, leaves: Sequence[Any]) -> Any:
        """Return what the denoiser gives for inputs, read from the buffers."""
        # Made here, for they belong to the stream that runs this; inference tensors not every caller could write to.
        if not self._buffers:
            with torch.inference_mode(False):
                self._buffers = [torch.empty_like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._fill(leaves)
        return self._called()

    def again(self, leaves: Sequence[Any]) -> Any:
        """Return what the graph gives for inputs, in its own tensors."""
        assert self.replay is not None
        self._fill(leaves)
        self.replay()
        return self.result

    def capture(self) -> None:
        """Capture the call; raises what the recorder does."""
        self.replay, self.result = self.recorder.record(self._called)

    def _fill(self, leaves: Sequence[Any]) -> None:
        for buffer, leaf in zip(self._buffers, leaves, strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(leaf, non_blocking=True)

    def _called(self) -> Any:
        args, kwargs = tree_unflatten(self._buffers, self._form)
        return self._forward(*args, **kwargs)


def signature_of(leaves: Sequence[Any], form: TreeSpec) -> list[object]:
    """Return what two calls have in common if a graph of one serves the other."""
    facts: list[object] = [form]
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            facts.append((leaf.shape, leaf.dtype, leaf.device, leaf.stride()))
        else:
            facts.append((type(leaf), leaf))
    return facts
