from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixdq.runtime.binding import Bound
from mixdq.runtime.snapshot import Snapshot
from mixdq.testing import tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline


class Thing(nn.Module):
    """Has something of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.register_buffer("table", torch.ones(3))
        self.loose = torch.ones(3)
        self.number, self.word, self.nothing = 1000.5, "one word", None
        self.numbers, self.mixed = [1000.5, 2.5], {"a": [SimpleNamespace(deep=[{"b": 7000}])]}
        self.some = {1000, 2000}
        self.processor = SimpleNamespace(strength=1000.5, own=nn.Linear(2, 2), controller=SimpleNamespace(step=0))
        self.function: Callable[[float], float] = abs
        self.bound: Any = Bound(abs, (), self.loose, torch.device("cpu"), torch.float32, None)
        # An object may be in itself.
        self.mixed["itself"] = self.mixed
        self.processor.owner = self


CHANGES: list[Callable[[Any], object]] = [
    lambda it: setattr(it, "number", 2000.5),
    lambda it: setattr(it, "number", "1000.5"),
    lambda it: setattr(it, "nothing", 0),
    lambda it: setattr(it, "new", 0),
    lambda it: delattr(it, "word"),
    lambda it: it.eval(),
    lambda it: it.numbers.append(3.5),
    lambda it: it.numbers.reverse(),
    lambda it: it.mixed["a"][0].deep[0].update(b=7001),
    lambda it: it.some.add(3000),
    lambda it: setattr(it.processor, "strength", 2000.5),
    lambda it: setattr(it.processor.controller, "step", 1),
    lambda it: setattr(it, "processor", SimpleNamespace(**vars(it.processor))),
    lambda it: setattr(it.processor.own, "weight", nn.Parameter(it.processor.own.weight.detach())),
    lambda it: setattr(it, "function", max),
    lambda it: setattr(it, "bound", Bound(abs, (), it.loose, torch.device("cpu"), torch.float32, None)),
    lambda it: it.inner.register_forward_hook(lambda *_: None),
    lambda it: it.inner.append(nn.ReLU()),
    lambda it: it.inner.__setitem__(0, nn.Linear(3, 3)),
    lambda it: setattr(it.inner[0], "__class__", type("Another", (nn.Linear,), {})),
    lambda it: setattr(it.inner[0], "forward", it.inner[1].forward),
    lambda it: setattr(it.inner[0], "bias", None),
    lambda it: setattr(it.inner[0].weight, "data", it.inner[0].weight.data.clone()),
    lambda it: setattr(it, "table", it.table.clone()),
    lambda it: setattr(it, "loose", it.loose.clone()),
    lambda it: it.half(),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(change: Callable[[Any], object]) -> None:
    thing = Thing()
    snapshot, again = Snapshot(thing), Snapshot(thing)
    assert snapshot.holds()
    assert snapshot.same_as(again)
    change(thing)
    assert not snapshot.holds()
    assert not again.same_as(Snapshot(thing))
    assert Snapshot(thing).holds()


EQUALS: list[Callable[[Any], object]] = [
    lambda it: setattr(it, "number", float("1000.5")),
    lambda it: setattr(it, "word", "".join(["one", " ", "word"])),
    lambda it: setattr(it, "numbers", [float("1000.5"), 2.5]),
    lambda it: it.inner[0].weight.data.mul_(2),
]


@pytest.mark.parametrize("change", EQUALS)
def test_equal_numbers_and_new_ones_in_the_same_memory_are_no_change(change: Callable[[Any], object]) -> None:
    thing = Thing()
    snapshot = Snapshot(thing)
    change(thing)
    assert snapshot.holds()
    # From then on it is the new objects that are compared.
    assert snapshot.holds()
    thing.number = 0.0
    assert not snapshot.holds()


def test_memory_is_no_others_while_a_snapshot_is_kept() -> None:
    thing = Thing()
    snapshot = Snapshot(thing)
    addresses = {one.data_ptr() for one in (*thing.parameters(), thing.table, thing.loose)}
    thing.to(torch.float64)
    del thing.loose
    made = [torch.empty(size) for size in (3, 9) for _ in range(200)]
    assert not addresses & {one.data_ptr() for one in made}
    assert not snapshot.holds()


def test_what_is_beside_is_not_looked_into() -> None:
    thing, beside = Thing(), SimpleNamespace(calls=0)
    thing.beside = beside
    for given, expected in ((beside, True), (None, False)):
        snapshot = Snapshot(thing, given)
        beside.calls += 1
        assert snapshot.holds() is expected


class Wrapped(Tensor):
    """A tensor made of others, as quantizers of PyTorch's have."""


def test_tensors_made_of_others_are_looked_into() -> None:
    thing = Thing()
    weight = torch.ones(2).as_subclass(Wrapped)
    weight.codes = torch.ones(2)
    thing.inner[0].weight = nn.Parameter(weight)
    thing.inner[0].weight.codes = weight.codes
    snapshot = Snapshot(thing)
    assert snapshot.holds()
    thing.inner[0].weight.codes = torch.ones(2)
    assert not snapshot.holds()


@pytest.mark.parametrize("make", [tiny_sd_pipeline, tiny_sdxl_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline])
def test_a_call_changes_nothing_in_denoisers_of_diffusers(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make()
    denoiser = pipe.components.get("unet") or pipe.transformer
    snapshots = []
    # Some pipelines prepare their denoiser for caches, once.
    for _ in range(2):
        pipe("a boat", num_inference_steps=1, height=16, width=16)
        snapshots.append(Snapshot(denoiser))
    # Nor is it looked at again from the beginning, which takes long.
    monkeypatch.setattr(Snapshot, "_is_equal", lambda _: False)
    assert snapshots[0].holds()
