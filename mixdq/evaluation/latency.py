"""Where the time of a model goes: milliseconds of single layers while the whole model runs.

A layer that is called again and again by itself finds its weights in the caches, as it never does between all others.
So layers are timed where they stand, by hooks before and after them.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mixdq.evaluation.timing import time_pictures, wait_for_device


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Milliseconds of one call: of each layer, all its runs together, and of the whole call; medians over calls."""

    layers: Mapping[str, float]
    whole: float

    @property
    def rest(self) -> float:
        """What is not in the layers; never below 0, where noise would have it."""
        return max(self.whole - sum(self.layers.values()), 0.0)


def time_layers(
    call: Callable[[], object],
    modules: Mapping[str, nn.Module],
    *,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> LayerTimes:
    """Return the times of `modules` within `call`, and of the call by itself, in turns, after a warm-up.

    Every hook is taken off at the end. On a GPU each layer is waited for, which takes from what overlaps otherwise.
    """
    started: dict[str, float] = {}
    spent: dict[str, float] = {}

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            wait_for_device()
            started[name] = clock()

        return hook

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            wait_for_device()
            spent[name] = spent.get(name, 0.0) + clock() - started[name]

        return hook

    calls: dict[str, list[float]] = {name: [] for name in modules}
    wholes = []
    call()
    for _ in range(repeats):
        wholes.append(time_pictures(call, pictures=1, repeats=1, warm_up=0, clock=clock).median)
        handles = []
        try:
            for name, module in modules.items():
                handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
            call()
        finally:
            for handle in handles:
                handle.remove()
        for name in modules:
            calls[name].append(spent.pop(name, 0.0))
    return LayerTimes(
        layers={name: statistics.median(times) * 1000.0 for name, times in calls.items()},
        whole=statistics.median(wholes) * 1000.0,
    )
