"""Layers called as one against each by itself, bit for bit; interpreted, or on a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixdq.quant.bos import BosRow
from mixdq.runtime.before import NOTHING, layer_norm
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.kernels.gpu.configurations import Configuration
from mixdq.runtime.linear import QuantizedLinear

pytestmark = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

DEVICE = available.device_type()
WIDTH = 24

Quantize = Callable[..., QuantizedLinear]


@pytest.fixture
def make(quantized: Quantize) -> Callable[..., list[QuantizedLinear]]:
    """Return a function ("W8A8 W4A8", ...) -> layers of one input and outputs of 5, 40 and 16 columns in turn."""

    def layers(bits: str, **more: object) -> list[QuantizedLinear]:
        widths = [(5, 40, 16)[i % 3] for i, _ in enumerate(bits.split())]
        made = zip(widths, bits.split(), strict=True)
        return [quantized(nn.Linear(WIDTH, out), each, backend="cuda", **more).to(DEVICE) for out, each in made]

    return layers


def joined(layers: list[QuantizedLinear], x: Tensor) -> object:
    """Join the layers' kernels, and return them as one."""
    from mixdq.runtime.together import run_together

    run_together(layers, x, NOTHING)
    (joint,) = {id(layer.joining(x).joint): layer.joining(x).joint for layer in layers}.values()
    assert joint is not None
    return joint.together


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bits", ["W8A8 W8A8 W8A8", "W8A8 W4A8 W4A8", "W3A8 W8A6 W8A8", "W4A16 W4A16"])
def test_outputs_lie_side_by_side_and_are_each_layers_own(make, bits: str, dynamic: bool) -> None:
    before = layer_norm(nn.LayerNorm(WIDTH).to(DEVICE))
    for shape in ((2, 5, WIDTH), (WIDTH,), (2, 0, WIDTH)):
        layers, x = make(bits, dynamic=dynamic and "16" not in bits), torch.randn(shape, device=DEVICE)
        expected = [layer.joining(x).folded(x, before, None) for layer in layers]
        assert torch.equal(joined(layers, x)(x, before), torch.cat(expected, dim=-1))
        own = [layer.joining(x).folded(x, before, None) for layer in layers]
        assert all(torch.equal(*pair) for pair in zip(own, expected, strict=True))


def test_first_tokens_keep_their_rows(make) -> None:
    state = torch.randn(WIDTH)
    texts = torch.randn(2, 7, WIDTH, device=DEVICE)
    texts[0, 0] = state.to(DEVICE) * 0.5
    layers = [
        layer
        for bits in ("W8A8", "W4A8")
        for out in (5, 40)
        for layer in make(bits, bos=BosRow(input=state, output=torch.randn(5)))
    ]
    # One that has none, as where a plan leaves it out.
    layers += make("W8A8")
    for x in (texts, texts[:, :1], texts[:0]):
        expected = [layer(x) for layer in layers]
        together = joined(layers, x)
        assert together.takes(x)
        assert torch.equal(together(x, NOTHING), torch.cat(expected, dim=-1))
    assert not together.takes(torch.randn(1, 78, WIDTH))
    assert not together.takes(torch.randn(7, WIDTH))


def test_first_tokens_of_unlike_states_stay_apart(make) -> None:
    states = [torch.randn(WIDTH) for _ in range(2)]
    layers = [layer for each in states for layer in make("W8A8", bos=BosRow(input=each, output=torch.randn(5)))]
    texts = torch.randn(2, 7, WIDTH, device=DEVICE)
    texts[:, 0] = states[1].to(DEVICE)
    expected = [layer(texts) for layer in layers]
    together = joined(layers, texts)
    assert len(together._parts) == 2
    assert torch.equal(together(texts, NOTHING), torch.cat(expected, dim=-1))


def test_sums_in_parts_are_written_beside_each_other(quantized: Quantize) -> None:
    layers = [
        quantized(nn.Linear(256, out), bits, backend="cuda").to(DEVICE) for out, bits in ((5, "W8A8"), (9, "W4A8"))
    ]
    x = torch.randn(2, 3, 256, device=DEVICE)
    expected = [layer(x) for layer in layers]
    together = joined(layers, x)
    for part in together._parts:
        part.layer.forced = Configuration(rows=16, columns=64, split=2, warps=4, stages=2)
    assert torch.equal(together(x, NOTHING), torch.cat(expected, dim=-1))


def test_like_neighbours_are_one_product_of_one_memory(make) -> None:
    x = torch.randn(3, WIDTH, device=DEVICE)
    layers = make("W8A8 W8A8 W4A8 W8A8")
    own = [layer.joining(x).layer.tensors.planes[0].clone() for layer in layers]
    assert len(joined(layers, x)._parts) == 3
    planes = [layer.joining(x).layer.tensors.planes[0] for layer in layers]
    places = [plane.untyped_storage().data_ptr() for plane in planes]
    assert places[0] == places[1]
    assert len(set(places)) == 3
    assert all(torch.equal(was, now) for was, now in zip(own, planes, strict=True))


@pytest.mark.parametrize("of", ["zero points", "bias", "scale"])
def test_who_differs_stays_apart(make, quantized: Quantize, of: str) -> None:
    x = torch.randn(3, WIDTH, device=DEVICE)
    other = nn.Linear(WIDTH, 5, bias=of != "bias")
    unlike = quantized(other, "W4A8", backend="cuda", symmetric=of != "zero points").to(DEVICE)
    if of == "scale":
        unlike.put("input_scale", unlike.input_scale * 2.0)
    layers = [*make("W4A8"), unlike]
    expected = [layer(x) for layer in layers]
    together = joined(layers, x)
    assert len(together._parts) == 2
    assert torch.equal(together(x, NOTHING), torch.cat(expected, dim=-1))
