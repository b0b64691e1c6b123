"""Layers of one input, called as one where they can; interpreted, or on a GPU."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mixdq.quant.bos import BosRow
from mixdq.runtime.before import GEGLU, SILU, Before
from mixdq.runtime.folding import fold
from mixdq.runtime.kernel import JoiningKernel
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.together import together

works = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

Quantize = Callable[..., QuantizedLinear]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def layers(quantized: Quantize) -> list[QuantizedLinear]:
    return [quantized(nn.Linear(6, out), "W8A8", backend="cuda").to(DEVICE) for out in (4, 9, 4)]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 6, device=DEVICE)


def joints(layers: list[QuantizedLinear], x: Tensor) -> list[object]:
    kernels = [layer.joining(x) for layer in layers]
    return [kernel.joint if isinstance(kernel, JoiningKernel) else None for kernel in kernels]


def same(layers: list[QuantizedLinear], x: Tensor) -> bool:
    return all(torch.equal(y, fold(layer, x, SILU)) for y, layer in zip(together(layers, x, SILU), layers, strict=True))


def test_on_any_backend_it_is_each_layers_output(quantized: Quantize, x: Tensor) -> None:
    own = [quantized(nn.Linear(6, 4), "W8A8", splits=splits).to(DEVICE) for splits in ((), (2, 4), ())]
    assert same(own, x)
    assert joints(own, x) == [None] * 3


def test_what_kernels_do_not_fold_is_computed_once_for_all(quantized: Quantize, x: Tensor) -> None:
    own = [quantized(nn.Linear(6, 4), "W8A8").to(DEVICE) for _ in range(3)]
    calls = []

    class Watched(Before):
        def __call__(self, x: Tensor, channel_axis: int) -> Tensor:
            calls.append(channel_axis)
            return super().__call__(x, channel_axis)

    expected = [layer(functional.silu(x)) for layer in own]
    assert all(torch.equal(*pair) for pair in zip(together(own, x, Watched(silu=True)), expected, strict=True))
    assert calls == [-1]


@works
def test_they_are_joined_once_and_anew_where_one_is_bound_anew(layers, x) -> None:
    assert same(layers, x)
    first = joints(layers, x)
    assert first[0] is not None
    assert first == [first[0]] * 3
    assert same(layers, x)
    assert joints(layers, x) == first
    layers[1].put("weight_scale", layers[1].weight_scale * 2.0)
    assert same(layers, x)
    for layer in layers:
        layer.use_backend("cuda")
    assert same(layers, x)
    assert joints(layers, x)[0] not in (None, first[0])


@works
def test_who_is_joined_is_not_moved_for_others(layers, x) -> None:
    assert same(layers, x)
    first = joints(layers, x)
    for others in (layers[:2], layers[1:], layers[::-1], layers[:1]):
        assert same(others, x)
    assert joints(layers, x) == first


@works
def test_joined_they_save_copy_and_move_as_before(layers, x) -> None:
    codes = [layer.weight.clone() for layer in layers]
    together(layers, x)
    assert [layer.weight.data_ptr() for layer in layers] != [code.data_ptr() for code in codes]
    saved = [layer.state_dict()["weight"] for layer in layers]
    assert all(torch.equal(was, now) for was, now in zip(codes, saved, strict=True))
    # accelerate's and huggingface_hub's ways to save leave out what shares memory.
    assert len({each.untyped_storage().data_ptr() for each in saved}) == len(saved)
    assert same(copy.deepcopy(layers), x)
    for layer in layers:
        layer.to(torch.bfloat16)
    assert same(layers, x.to(torch.bfloat16))
    assert all(torch.equal(was, layer.weight) for was, layer in zip(codes, copy.deepcopy(layers), strict=True))


@works
def test_longer_texts_than_an_encoder_takes_are_each_layers_own(quantized: Quantize) -> None:
    bos = [BosRow(input=torch.ones(6), output=torch.randn(4)) for _ in range(2)]
    own = [quantized(nn.Linear(6, 4), "W8A8", bos=each, backend="cuda").to(DEVICE) for each in bos]
    x = torch.randn(1, 154, 6, device=DEVICE)
    x[:, ::77] = 1.0
    for text in (x[:, :77], x):
        found = together(own, text)
        assert all(torch.equal(y, layer(text)) for y, layer in zip(found, own, strict=True))


@works
def test_compiled_it_is_one_operator(layers, x) -> None:
    expected = together(layers, x, SILU)
    for case in (layers, [layers[0]]):
        graphs: list[torch.fx.GraphModule] = []

        def keep(graph: torch.fx.GraphModule, _: object, kept: list[torch.fx.GraphModule] = graphs) -> object:
            kept.append(graph)
            return graph.forward

        torch._dynamo.reset()
        with torch.no_grad():
            found = torch.compile(lambda x, case=case: together(case, x, SILU), backend=keep, fullgraph=True)(x)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=False))
        calls = [node for node in graphs[0].graph.nodes if "mixdq" in str(node.target)]
        assert len(calls) == 1
    torch._dynamo.reset()


def test_its_operator_says_the_shape_it_has(layers, x) -> None:
    for layer in layers:
        layer.use_backend("reference")
    handles = [layer.handle for layer in layers]
    torch.library.opcheck(torch.ops.mixdq.together.default, (x, handles, [4, 9, 4], *SILU))


def test_an_input_of_other_channels_is_refused(layers) -> None:
    for before in (SILU, GEGLU):
        with pytest.raises(ValueError, match="expected an input"):
            together(layers, torch.randn(2, 7, device=DEVICE), before)
