"""Where the time of a model goes: milliseconds of single layers while the whole model runs.

A layer that is called again and again by itself finds its weights in the caches, as it never does between all others.
So layers are timed where they stand, by hooks before and after them.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mixdq.evaluation.pace import Pace
from mixdq.evaluation.timing import device_in_use

Look = float | torch.cuda.Event
"""At a clock in seconds, or at the device's own."""
AHEAD_CYCLES = 2_000_000
"""Of a GPU, about a millisecond: longer than it takes to launch a layer's kernels."""


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Milliseconds of one call: of each layer, all its runs together, and of the whole call."""

    layers: Mapping[str, float]
    whole: float

    @property
    def rest(self) -> float:
        """What is not in the layers; never below 0, where noise would have it."""
        return max(self.whole - sum(self.layers.values()), 0.0)


def time_layers(
    call: Callable[[], object],
    modules: Mapping[str, nn.Module],
    pace: Pace,
    *,
    whole: Callable[[], object] | None = None,
    repeats: int = 5,
) -> LayerTimes:
    """Return the times of `modules` within `call`, and of the call by itself, in turns, after a warm-up.

    `whole` does what the call does, and is what is timed by itself: on a GPU, where launches from Python would take
    longer than all they launch, the replay of a graph.

    They are as they would be at the `unit` of `pace`, and means over the half of the calls that took neither longest
    nor shortest: means, unlike medians, of layers add up to those of calls. Every hook is taken off at the end. A GPU's
    own clock is read, between a layer's first kernel and its last, and nothing is waited for within a call. Before
    each layer a GPU is kept busy until all its kernels are launched, so that they run as they do in a graph.
    """
    looks: dict[str, list[Look]] = {name: [] for name in modules}

    def looking(name: str, *, ahead: bool) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if ahead and device_in_use():
                torch.cuda._sleep(AHEAD_CYCLES)  # type: ignore[no-untyped-call]
            looks[name].append(_look(pace.clock))

        return hook

    def watched() -> None:
        handles = []
        try:
            for name, module in modules.items():
                handles.append(module.register_forward_pre_hook(looking(name, ahead=True)))
                handles.append(module.register_forward_hook(looking(name, ahead=False)))
            call()
        finally:
            for handle in handles:
                handle.remove()

    wholes: list[float] = []
    calls: list[dict[str, float]] = []
    # A watched call may run other kernels, which are compiled now.
    call()
    watched()
    for seen in looks.values():
        seen.clear()
    for _ in range(repeats):
        seconds, share = pace.time(whole or call)
        wholes.append(seconds / share)
        _, share = pace.time(watched)
        # Before and after, in turns.
        calls.append({name: sum(map(_seconds, seen[::2], seen[1::2])) / share for name, seen in looks.items()})
        for seen in looks.values():
            seen.clear()
    calls.sort(key=lambda layers: sum(layers.values()))
    middle = slice(repeats // 4, repeats - repeats // 4)
    return LayerTimes(
        layers={name: statistics.fmean(layers[name] for layers in calls[middle]) * 1000.0 for name in modules},
        whole=statistics.fmean(sorted(wholes)[middle]) * 1000.0,
    )


def _look(clock: Callable[[], float]) -> Look:
    if not device_in_use():
        return clock()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _seconds(before: Look, after: Look) -> float:
    if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
        return float(before.elapsed_time(after)) / 1000.0
    assert isinstance(before, float)
    assert isinstance(after, float)
    return after - before
