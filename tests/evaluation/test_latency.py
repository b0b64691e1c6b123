import itertools
import time

import pytest
import torch
from torch import nn

from mixdq.evaluation.latency import LayerTimes, time_layers
from mixdq.evaluation.pace import Pace


class Twice(nn.Module):
    """Runs its first layer twice and its second once; the clock below ticks once for every look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(self.first(x)))


def test_layers_are_timed_where_they_stand_and_hooks_are_taken_off() -> None:
    model, ticks = Twice(), itertools.count()
    modules = {"first": model.first, "second": model.second, "idle": nn.Linear(1, 1)}
    pace = Pace(clock=lambda: float(next(ticks)))
    times = time_layers(lambda: model(torch.ones(1, 4)), modules, pace, repeats=3)
    # A look before and a look after are one tick apart; the whole is looked at without hooks.
    assert times.layers == {"first": 2000.0, "second": 1000.0, "idle": 0.0}
    assert times.whole == 1000.0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules.values())


def test_a_whole_call_is_what_does_it_without_its_launches() -> None:
    now = itertools.count()
    model = Twice()

    def launched() -> None:
        model(torch.ones(1, 4))
        for _ in range(30):
            next(now)

    def replayed() -> None:
        for _ in range(3):
            next(now)

    modules = {"first": model.first, "second": model.second}
    slow, quick = (
        time_layers(launched, modules, Pace(clock=lambda: float(next(now))), whole=whole, repeats=3)
        for whole in (None, replayed)
    )
    assert slow.layers == quick.layers == {"first": 2000.0, "second": 1000.0}
    assert (slow.whole, slow.rest) == (31000.0, 28000.0)
    assert (quick.whole, quick.rest) == (4000.0, 1000.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_does_not_wait_for_its_launches() -> None:
    class Late(nn.Linear):
        def forward(self, x):
            time.sleep(0.0003)
            return super().forward(x)

    model = Late(64, 64, device="cuda")
    x = torch.ones(1, 64, device="cuda")
    times = time_layers(lambda: model(x), {"late": model}, Pace("cuda"), repeats=3)
    assert 0 < times.layers["late"] < 0.2 < times.whole


def test_hooks_are_taken_off_where_the_call_fails() -> None:
    model = Twice()
    calls = itertools.count()

    def call() -> None:
        model(torch.ones(1, 4))
        if next(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        time_layers(call, {"first": model.first}, Pace(), repeats=1)
    assert not model.first._forward_hooks


def test_rest_is_what_layers_leave_and_never_negative() -> None:
    assert LayerTimes(layers={"a": 1.0, "b": 2.5}, whole=5.0).rest == 1.5
    assert LayerTimes(layers={"a": 6.0}, whole=5.0).rest == 0.0
