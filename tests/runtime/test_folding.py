"""A layer with what stands around it folded in: what torch makes of the three one after another."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixdq.metrics.sqnr import sqnr
from mixdq.quant.bos import BosRow
from mixdq.runtime.before import GEGLU, NOTHING, SILU, Before
from mixdq.runtime.folding import fold
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.layer import QuantizedLayer

works = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

Quantize = Callable[..., QuantizedLayer]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEARLY = 40.0
"""dB, where a code here and there falls otherwise, for a norm's last bit."""


def norm(kind: str, channels: int, **more: object) -> Before:
    return Before(kind, torch.rand(channels, device=DEVICE), torch.randn(channels, device=DEVICE), **more)  # type: ignore[arg-type]


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Callable[[], Before]]] = {
    "conv": (lambda: nn.Conv2d(6, 9, 3, padding=1), (2, 6, 5, 4), lambda: norm("group_norm", 6, groups=3, silu=True)),
    "tokens": (lambda: nn.Linear(6, 9), (2, 5, 6), lambda: norm("group_norm", 6, groups=2, eps=1e-6)),
    "rows": (lambda: nn.Linear(6, 9), (2, 5, 6), lambda: norm("layer_norm", 6, eps=1e-5)),
    "gate": (lambda: nn.Linear(6, 9), (2, 5, 12), lambda: GEGLU),
    "one row": (lambda: nn.Linear(6, 9), (6,), lambda: SILU),
}


def case(name: str, quantized: Quantize, bits: str = "W8A8", **more: object) -> tuple[QuantizedLayer, Tensor, Before]:
    make, shape, before = CASES[name]
    return quantized(make().to(DEVICE), bits, **more).to(DEVICE), torch.randn(shape, device=DEVICE) * 2.0, before()


def apart(layer: QuantizedLayer, x: Tensor, before: Before, added: Tensor | None) -> Tensor:
    y = layer.run(before(x, layer.channel_axis))
    return y if added is None else y + added


@pytest.mark.parametrize("name", list(CASES))
def test_where_the_kernel_cannot_torch_does_it(quantized: Quantize, name: str) -> None:
    layer, x, before = case(name, quantized)
    added = torch.randn_like(apart(layer, x, before, None))
    assert torch.equal(fold(layer, x, before, added), apart(layer, x, before, added))
    assert torch.equal(fold(layer, x, before), apart(layer, x, before, None))


@works
@pytest.mark.parametrize("bits", ["W8A8", "W4A16"])
@pytest.mark.parametrize("name", list(CASES))
def test_where_it_can_no_code_is_off_by_more_than_one(quantized: Quantize, name: str, bits: str) -> None:
    layer, x, before = case(name, quantized, bits, backend="cuda")
    wanted = apart(layer, x, before, None)
    added = torch.randn_like(wanted)
    found = fold(layer, x, before, added)
    step = 0.0 if layer.input_scale is None else float(layer.input_scale.max())
    # Norms and gates of numbers of about 10 are off by some roundings, weights are below 1.
    bound = layer.float_weight().abs().flatten(1).sum(1) * (step + 2.0**-16) * 1.001
    bound = bound.view(-1, 1, 1) if layer.channel_axis == -3 else bound
    off = (found - (wanted + added)).abs()
    assert bool((off <= bound).all())
    assert float((off <= 2.0**-16 * bound.max()).float().mean()) > 0.9 or not step


@works
def test_a_first_text_token_and_layer_norms_of_joined_inputs_are_left_to_torch(quantized: Quantize) -> None:
    bos = BosRow(input=torch.full((6,), 50.0), output=torch.randn(9))
    x = torch.randn(2, 5, 6, device=DEVICE)
    joined = quantized(nn.Linear(6, 9), "W8A8", splits=(2, 4))
    for layer, before in ((quantized(nn.Linear(6, 9), "W8A8", bos=bos), SILU), (joined, norm("layer_norm", 6))):
        layer.to(DEVICE).use_backend("cuda")
        assert torch.equal(fold(layer, x, before, x[..., :1]), apart(layer, x, before, x[..., :1]))


JOINED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "window": (lambda: nn.Conv2d(12, 9, 3, padding=1), (2, 12, 5, 4)),
    "shortcut": (lambda: nn.Conv2d(12, 9, 1), (2, 12, 5, 4)),
    "tokens": (lambda: nn.Linear(12, 9), (2, 20, 12)),
}


@works
@pytest.mark.parametrize(("bits", "dynamic"), [("W8A8", False), ("W8A8", True), ("W4A16", False)])
@pytest.mark.parametrize("name", list(JOINED))
def test_a_norm_is_of_the_whole_joined_input_and_folded_into_each_part(quantized, name, bits, dynamic) -> None:
    make, shape = JOINED[name]
    layer = quantized(make().to(DEVICE), bits, splits=(5, 7), dynamic=dynamic).to(DEVICE)
    layer.use_backend("cuda")
    # Groups of 4 straddle the parts, which differ as what comes from below and a skip may.
    x = torch.randn(shape, device=DEVICE)
    x.narrow(layer.channel_axis, 5, 7).mul_(4.0).add_(3.0)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    before = norm("group_norm", 12, groups=3, eps=1e-5, silu=name != "tokens")
    for dtype in (torch.float32, torch.float16):
        same = before._replace(weight=before.weight.to(dtype), bias=before.bias.to(dtype))
        wanted = apart(layer, x.to(dtype), same, None)
        wanted += (added := torch.randn_like(wanted))
        found = fold(layer, x.to(dtype), same, added)
        assert found.dtype == dtype
        assert sqnr(wanted, found) > NEARLY
        assert float((found - wanted).abs().le(wanted.abs() * 2.0**-20).float().mean()) > 0.9


@works
def test_what_is_added_in_another_dtype_is_added_by_torch(quantized: Quantize) -> None:
    layer, x, _ = case("rows", quantized, backend="cuda")
    added = torch.randn(2, 5, 9, device=DEVICE, dtype=torch.float64)
    assert torch.equal(fold(layer, x, NOTHING, added), layer.run(x) + added)


@pytest.mark.parametrize("name", list(CASES))
def test_an_input_of_other_channels_is_refused_by_the_layers_name(quantized: Quantize, name: str) -> None:
    layer, x, before = case(name, quantized)
    with pytest.raises(ValueError, match="layer: expected an input"):
        fold(layer, x.repeat_interleave(2, dim=layer.channel_axis), before)


@works
def test_compiled_it_is_one_operator_that_says_its_output(quantized: Quantize) -> None:
    layers = {name: case(name, quantized, backend="cuda") for name in ("conv", "gate")}
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def both(picture: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(  # type: ignore[return-value]
            fold(layers[name][0], x, layers[name][2], x[:1, :1, :1].flatten()[:1])
            for name, x in (("conv", picture), ("gate", tokens))
        )

    picture, tokens = (layers[name][1] for name in layers)
    with torch.no_grad():
        found = both(picture, tokens)
        for y, (layer, x, before) in zip(found, layers.values(), strict=True):
            assert torch.equal(y, fold(layer, x, before, x[:1, :1, :1].flatten()[:1]))
    torch._dynamo.reset()
