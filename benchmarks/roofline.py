"""What bounds a kernel: the machine's rates, measured in the same run, and where the time of a slow layer goes."""

import time
from dataclasses import dataclass

import torch

from benchmarks.sdxl import Shape

GOOD = 0.8
"""The share of the ceiling that needs no explanation."""
BYTES_STREAMED = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The machine, as far as a layer's time depends on it.

    Attributes:
        ceiling: the most int8 operations a second of any layer and candidate.
        bandwidth: bytes a second, read and written, of a copy too large for any cache.
        overhead: seconds of a call that computes next to nothing.
    """

    ceiling: float
    bandwidth: float
    overhead: float

    def reason(self, shape: Shape, seconds: float) -> str:
        """Return why a layer that took `seconds` is below `GOOD` of the ceiling; nothing where it is not.

        The parts that are sure to cost time, each as a share of `seconds`; caches hide some of the memory's. What they
        leave is the kernel's own.
        """
        product = shape.operations / self.ceiling
        if product >= GOOD * seconds:
            return ""
        parts = {
            "call": self.overhead,
            "weights": torch.Size(shape.weight).numel() / self.bandwidth,
            # bfloat16 is read, a byte written and read again; bfloat16 comes out.
            "activations": (4 * torch.Size(shape.input).numel() + 2 * shape.outputs) / self.bandwidth,
        }
        shares = {name: part / seconds for name, part in parts.items() if part >= 0.05 * seconds}
        rest = 1 - (product + sum(parts.values())) / seconds
        if rest >= 0.05:
            shares["kernel"] = rest
        return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def stream_bandwidth(repeats: int = 5) -> float:
    """Return bytes a second, read and written, of the fastest of some copies."""
    source = torch.ones(BYTES_STREAMED, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    return 2 * BYTES_STREAMED / min(seconds)
