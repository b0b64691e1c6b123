"""A denoiser that was changed after its capture: no graph is stale."""

import copy
import re
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from mixdq.runtime import blocks
from mixdq.runtime.graphs import remove_graphs
from mixdq.runtime.layer import QuantizedLayer

Model = Any
Change = Callable[[Model], None]


class Scaled(AttnProcessor):
    """A processor with numbers of its own."""

    strength = 1.0
    scales: list[float]

    def __init__(self) -> None:
        self.scales = [1.0]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().__call__(*args, **kwargs) * self.strength * self.scales[0]


def attention(model: Model) -> Any:
    return model.mid_block.attentions[0].transformer_blocks[0].attn1


def new_weight(model: Model) -> None:
    model.conv_in.weight = nn.Parameter(model.conv_in.weight * 2, requires_grad=False)


def new_memory(model: Model) -> None:
    model.conv_in.weight.data = model.conv_in.weight.data * 2


def written_in_place(model: Model) -> None:
    model.conv_in.weight.mul_(2)


def loaded(model: Model) -> None:
    model.load_state_dict({name: tensor * 1.5 for name, tensor in model.state_dict().items()})


def submodule(model: Model) -> None:
    model.conv_out = nn.Conv2d(*model.conv_out.weight.shape[1::-1], 3, padding=1, bias=False).eval()
    model.conv_out.weight.fill_(0.1)


def processor(model: Model) -> None:
    model.set_attn_processor(Scaled())
    attention(model).processor.strength = 2.0


def number_of_a_processor(model: Model) -> None:
    attention(model).processor.strength = 3.0


def list_of_a_processor(model: Model) -> None:
    attention(model).processor.scales[0] = 3.0


def free_u(model: Model) -> None:
    model.enable_freeu(s1=0.5, s2=0.4, b1=1.5, b2=1.6)


def own_forward(model: Model) -> None:
    model.conv_out.forward = MethodType(lambda self, x: 2 * type(self).forward(self, x), model.conv_out)


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def another_class(model: Model) -> None:
    model.conv_out.__class__ = Doubled


def width(model: Model) -> None:
    model.conv_out.stride = (2, 2)


CHANGES = [
    new_weight,
    new_memory,
    written_in_place,
    loaded,
    submodule,
    processor,
    number_of_a_processor,
    list_of_a_processor,
    free_u,
    own_forward,
    another_class,
    width,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_denoiser_is_heard(calls: Any, change: Change, graphed: Model, plain: Model, tape: Any) -> None:
    for model in (graphed, plain):
        attention(model).set_processor(Scaled())
    calls.capture(graphed)
    calls.same(graphed, plain)
    before = plain(**calls.inputs(7)).sample
    for model in (graphed, plain):
        change(model)
    assert not torch.equal(plain(**calls.inputs(7)).sample, before)
    for seed in (7, 8, 9):
        calls.same(graphed, plain, seed)
    # A graph knows where numbers are, not which.
    assert tape.records == (1 if change in (written_in_place, loaded) else 2)


def test_adapters_are_heard_with_every_scale_and_when_they_go(
    calls: Any, graphed: Model, plain: Model, tape: Any
) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    draw = torch.Generator().manual_seed(0)
    weights = {}
    for name, module in plain.named_modules():
        if re.search(r"to_[qkv]$", name):
            out, inner = module.weight.shape
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(2, inner, generator=draw)
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(out, 2, generator=draw)
    steps: list[Change] = [
        lambda model: None,
        lambda model: model.load_lora_adapter(weights, prefix="unet", adapter_name="one"),
        lambda model: model.set_adapters(["one"], [0.3]),
        lambda model: model.disable_adapters(),
        lambda model: model.unload_lora(),
    ]
    for step in steps:
        step(graphed)
        step(plain)
        for seed in range(3):
            calls.same(graphed, plain, seed)
    assert (tape.records, tape.replays) == (5, 9)
    # The same number again is no change.
    graphed.enable_freeu(s1=0.5, s2=0.4, b1=1.5, b2=1.6)
    calls.capture(graphed)
    graphed.enable_freeu(s1=float("0.5"), s2=float("0.4"), b1=float("1.5"), b2=float("1.6"))
    calls.capture(graphed)
    assert (tape.records, tape.replays) == (6, 12)


def test_a_kernel_bound_anew_is_heard(calls: Any, graphed: Model, quantized: Any, tape: Any) -> None:
    for name, module in list(graphed.named_modules()):
        if type(module) is nn.Linear:
            graphed.set_submodule(name, quantized(module, "W4A16").eval())
    twin = copy.deepcopy(graphed)
    remove_graphs(twin)
    layers = [module for module in graphed.modules() if isinstance(module, QuantizedLayer)]
    # The first binds, the second is captured.
    calls.capture(graphed)
    assert tape.records == 1
    calls.same(graphed, twin)
    state = {name: t.clone() if "scale" not in name else 2 * t for name, t in graphed.state_dict().items()}
    steps: list[Change] = [
        lambda model: model.load_state_dict(state),
        lambda model: [
            module.use_backend("reference") for module in model.modules() if isinstance(module, type(layers[0]))
        ],
        lambda model: model.to("cpu"),
    ]
    for number, step in enumerate(steps, start=2):
        before = twin(**calls.inputs(7)).sample
        step(graphed)
        step(twin)
        for seed in (7, 8, 9):
            calls.same(graphed, twin, seed)
        assert torch.equal(twin(**calls.inputs(7)).sample, before) is (number > 2)
        assert tape.records == number
    assert all(layer._bound is not None for layer in layers)


def test_folded_blocks_are_in_graphs_and_folding_is_heard(
    calls: Any, graphed: Model, plain: Model, tape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "DEVICE", "cpu")
    calls.capture(graphed)
    for model in (graphed, plain):
        assert blocks.fold_blocks(model) > 0
    for seed in range(3):
        calls.same(graphed, plain, seed)
    assert (tape.records, tape.replays) == (2, 2)
