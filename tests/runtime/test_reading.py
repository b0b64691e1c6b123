"""Outputs that are made together within one call, for whoever asks; interpreted, or on a GPU."""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from mixdq.runtime import reading as reading_module
from mixdq.runtime.before import NOTHING, SILU
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.reading import Begun, begin, read

pytestmark = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

DEVICE = available.device_type()

Quantize = Callable[..., QuantizedLinear]


@pytest.fixture
def layers(quantized: Quantize) -> list[QuantizedLinear]:
    several = ("W8A8", "W4A8", "W8A8", "W4A8", "W8A8")
    return [quantized(nn.Linear(6, 4), bits, backend="cuda").to(DEVICE) for bits in several]


@pytest.fixture
def model() -> Begun:
    return Begun()


@pytest.fixture
def called(layers, monkeypatch: pytest.MonkeyPatch) -> list[list[QuantizedLinear]]:
    """What is called together, set by set."""
    sets: list[list[QuantizedLinear]] = []
    run = reading_module.run_joined
    monkeypatch.setattr(reading_module, "run_joined", lambda own, *args: sets.append(own) or run(own, *args))
    return sets


def test_outside_of_a_models_call_nothing_is_found(layers) -> None:
    x = torch.randn(2, 6, device=DEVICE)
    begin(Begun(), {"text": lambda: layers})
    gc.collect()
    assert read("text", layers[0], x, NOTHING) is None


def test_a_call_in_another_thread_is_another_call(layers, model, called) -> None:
    x = torch.randn(2, 6, device=DEVICE)
    begin(model, {"text": lambda: layers})
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(read, "text", layers[0], x, NOTHING).result() is None
    assert read("text", layers[0], x, NOTHING) is not None


def test_each_finds_its_own_output_once(layers, model, called) -> None:
    x = torch.randn(2, 6, device=DEVICE)
    begin(model, {"text": lambda: layers, "time": list})
    for layer in reversed(layers):
        y = read("text", layer, x, SILU)
        assert isinstance(y, Tensor)
        assert torch.equal(y, layer(SILU(x, -1)))
        assert read("time", layer, x, SILU) is None
    assert read("text", layers[0], x, SILU) is None
    # Once, those of like widths beside each other.
    assert [[str(layer.layout.bits) for layer in own] for own in called] == [["W4A8", "W4A8", "W8A8", "W8A8", "W8A8"]]


def test_another_tensor_is_left_to_whoever_has_it(layers, model, called) -> None:
    x = torch.randn(2, 6, device=DEVICE)
    begin(model, {"text": lambda: layers})
    assert read("text", layers[0], x, NOTHING) is not None
    assert read("text", layers[1], x.clone(), NOTHING) is None
    assert read("text", layers[1], x, NOTHING) is not None
    assert len(called) == 1


def test_what_is_written_to_within_a_call_is_another_tensor(layers, model) -> None:
    x = torch.randn(2, 6, device=DEVICE)
    begin(model, {"text": lambda: layers})
    assert read("text", layers[0], x, NOTHING) is not None
    x.neg_()
    assert read("text", layers[1], x, NOTHING) is None


def test_a_set_of_which_one_layer_is_elsewhere_is_to_be_called(layers, model) -> None:
    x = torch.randn(2, 6, device=DEVICE)
    layers[2].to("meta")
    begin(model, {"text": lambda: layers})
    assert [read("text", layer, x, NOTHING) for layer in layers] == [None] * 5


def test_nothing_is_kept_from_one_call_to_the_next(layers, model) -> None:
    x = torch.randn(2, 6, device=DEVICE)
    for _ in range(2):
        begin(model, {"text": lambda: layers})
        y = read("text", layers[0], x, NOTHING)
        assert y is not None
        assert torch.equal(y, layers[0](x))
        x.neg_()


def test_a_set_is_of_one_width_and_no_larger_than_it_may_be(layers, model, quantized, called, monkeypatch) -> None:
    # 24 weights, of 8 bits or 4.
    monkeypatch.setattr(reading_module, "READ_AT_ONCE", 36)
    other = quantized(nn.Linear(5, 4), "W8A8", backend="cuda").to(DEVICE)
    every = [layers[0], other, *layers[1:]]
    x = torch.randn(2, 6, device=DEVICE)
    begin(model, {"text": lambda: every})
    found = [read("text", layer, x, NOTHING) for layer in layers]
    assert read("text", other, torch.randn(2, 5, device=DEVICE), NOTHING) is None
    # Whoever is alone has to be called.
    assert [y is None for y in found] == [False, False, False, False, True]
    assert all(torch.equal(y, layer(x)) for y, layer in zip(found, layers, strict=True) if y is not None)
    assert [sum(int(layer.layout.bits.weight) * 3 for layer in own) for own in called] == [36, 36, 24, 24]


def test_layers_that_cannot_be_joined_are_to_be_called(layers, model) -> None:
    x = torch.randn(2, 6, device=DEVICE)
    layers[2].use_backend("reference")
    begin(model, {"text": lambda: layers})
    assert [read("text", layer, x, NOTHING) for layer in layers] == [None] * 5
