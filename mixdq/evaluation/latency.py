"""Where the time of a model goes: milliseconds of single layers while the whole model runs.

A layer that is called again and again by itself finds its weights in the caches, as it never does between all others.
So layers are timed where they stand, by hooks before and after them.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mixdq.evaluation.pace import Pace
from mixdq.evaluation.timing import wait_for_device


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Milliseconds of one call: of each layer, all its runs together, and of all that is not in them."""

    layers: Mapping[str, float]
    rest: float

    @property
    def whole(self) -> float:
        """Of the whole call."""
        return self.rest + sum(self.layers.values())


def time_layers(
    call: Callable[[], object],
    modules: Mapping[str, nn.Module],
    pace: Pace,
    *,
    repeats: int = 5,
) -> LayerTimes:
    """Return the times of `modules` within `call`, after a warm-up, as they would be at the `unit` of `pace`.

    They are means over the half of the calls that took neither longest nor shortest: means, unlike medians, of layers
    add up to those of calls. Every hook is taken off at the end. On a GPU each layer is waited for, which takes from
    what overlaps otherwise.
    """
    started: dict[str, float] = {}
    spent: dict[str, float] = {}

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            wait_for_device()
            started[name] = pace.clock()

        return hook

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            wait_for_device()
            spent[name] = spent.get(name, 0.0) + pace.clock() - started[name]

        return hook

    calls: list[tuple[float, dict[str, float]]] = []
    handles = []
    call()
    try:
        for name, module in modules.items():
            handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
        for _ in range(repeats):
            whole, share = pace.time(call)
            calls.append((whole / share, {name: spent.get(name, 0.0) / share for name in modules}))
            spent.clear()
    finally:
        for handle in handles:
            handle.remove()
    calls.sort(key=lambda made: made[0])
    middle = calls[repeats // 4 : repeats - repeats // 4]
    layers = {name: statistics.fmean(layers[name] for _, layers in middle) * 1000.0 for name in modules}
    whole = statistics.fmean(whole for whole, _ in middle) * 1000.0
    return LayerTimes(layers=layers, rest=max(whole - sum(layers.values()), 0.0))
