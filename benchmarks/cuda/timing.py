"""Time on a GPU: work captured in a graph, replayed in turns, measured by the device's own events; and its ceilings.

What is captured goes round several sets of tensors, more than the cache holds, so that memory is what is measured.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.measuring import Timing
from mixdq.errors import MixDQError

Call = Callable[[], object]

CACHES = 3
"""How many times the L2 cache the sets of tensors take together."""
MOST_SETS = 128
FP8_CAPABILITY = (8, 9)
LEAST_MS = 2.0
"""A measurement replays until it takes so long: events tick in half microseconds."""
SIDE = 8192
STREAMED = 2**30


@dataclass(frozen=True)
class Replay:
    """A graph, with the calls that were captured: they own the tensors it reads, and a graph keeps none alive."""

    graph: torch.cuda.CUDAGraph
    calls: tuple[Call, ...]

    def __call__(self) -> None:
        """Run all of them again."""
        self.graph.replay()


def need_cuda() -> None:
    """Return if there is an NVIDIA GPU; end the program with a sentence otherwise."""
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here (torch.cuda.is_available() is False): nothing was measured.")


def failures() -> tuple[type[Exception], ...]:
    """Return the errors of a candidate after which others go on; Triton's have no base but Exception."""
    known: tuple[type[Exception], ...] = (AssertionError, AttributeError, ImportError, LookupError, OSError)
    known += (RuntimeError, TypeError, ValueError, MixDQError)
    try:
        from triton.errors import TritonError
    except ImportError:
        return known
    return (*known, TritonError)


def said(error: Exception) -> str:
    """Return an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def sets_of(bytes_of_one: int) -> int:
    """Return how many sets of tensors of so many bytes overflow the cache."""
    cache = torch.cuda.get_device_properties().L2_cache_size
    return max(1, min(MOST_SETS, -(-CACHES * cache // max(1, bytes_of_one))))


def graphed(calls: Sequence[Call]) -> Replay:
    """Return the replay of a graph of all calls, which have run before so that nothing is compiled in it.

    It has been replayed: what fails in it fails here.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    replay = Replay(graph, tuple(calls))
    replay()
    torch.cuda.synchronize()
    return replay


def in_turns(things: Mapping[str, tuple[Call, int]], *, runs: int) -> dict[str, Timing]:
    """Return the seconds of one piece of each thing, which is a call and the pieces in it; after a warm-up round."""
    # What libraries prepare in a first call is no measure of the next.
    for call, _ in things.values():
        call()
    repeats = {name: max(1, round(LEAST_MS / max(_ms(call, 1), 1e-3))) for name, (call, _) in things.items()}
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for _ in range(runs):
        for name, (call, pieces) in things.items():
            seconds[name].append(_ms(call, repeats[name]) / 1e3 / pieces)
    return {name: Timing(statistics.median(all_), min(all_), max(all_)) for name, all_ in seconds.items()}


def ceilings(runs: int = 5) -> dict[str, float]:
    """Return what the device does at most: operations a second of products by dtype, "bytes" a second of copies.

    Products are PyTorch's own, of random numbers, large and square: int8, float16, and float8 on cards that have it.
    """
    codes = torch.randint(-128, 128, (SIDE, SIDE), dtype=torch.int8, device="cuda")
    halves = torch.randn(SIDE, SIDE, dtype=torch.float16, device="cuda")
    source = torch.randint(0, 255, (STREAMED,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    things: dict[str, tuple[Call, int]] = {
        "int8": (lambda: torch._int_mm(codes, codes.t()), 1),
        "float16": (lambda: halves @ halves.t(), 1),
        "bytes": (lambda: target.copy_(source), 1),
    }
    if torch.cuda.get_device_capability() >= FP8_CAPABILITY:
        floats = halves.to(torch.float8_e4m3fn)
        things["float8"] = (fp8_product(floats, floats), 1)
    timings = in_turns(things, runs=runs)
    operations = 2 * SIDE**3
    return {name: (2 * STREAMED if name == "bytes" else operations) / one.fastest for name, one in timings.items()}


def fp8_product(rows: torch.Tensor, columns: torch.Tensor) -> Call:
    """Return what multiplies `rows` [m, k] by `columns` [n, k], E4M3 floats with a scale each, to bfloat16 [m, n]."""
    scales = torch.ones(len(rows), 1, device=rows.device), torch.ones(1, len(columns), device=rows.device)
    return lambda: torch._scaled_mm(rows, columns.t(), scale_a=scales[0], scale_b=scales[1], out_dtype=torch.bfloat16)


def _ms(call: Call, repeats: int) -> float:
    """Return the milliseconds that the device takes for some calls."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
