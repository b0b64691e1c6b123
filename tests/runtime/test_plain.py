"""What is as SDXL's blocks are, and what is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from mixdq.runtime import plain
from mixdq.runtime.linear import QuantizedLinear


def resnet(**more: Any) -> ResnetBlock2D:
    return ResnetBlock2D(**{"in_channels": 4, "temb_channels": 3, "groups": 2, **more}).eval()


def block(**more: Any) -> BasicTransformerBlock:
    given = {"dim": 8, "num_attention_heads": 2, "attention_head_dim": 4, "cross_attention_dim": 6, **more}
    return BasicTransformerBlock(**given).eval()


def attention(**more: Any) -> Attention:
    return Attention(**{"query_dim": 8, "heads": 2, "dim_head": 4, **more}).eval()


TIME = torch.zeros(1, 3)
CASES: dict[str, tuple[Callable[..., bool], Callable[..., nn.Module], list[dict[str, Any]]]] = {
    "resnet": (
        lambda module: plain.is_plain_resnet(module, TIME),
        resnet,
        [{"up": True}, {"output_scale_factor": 2.0}, {"non_linearity": "gelu"}, {"temb_channels": None}],
    ),
    "block": (plain.is_plain_block, block, [{"norm_elementwise_affine": False}, {"only_cross_attention": True}]),
    "attention": (
        plain.is_plain_attention,
        attention,
        [{"residual_connection": True}, {"rescale_output_factor": 2.0}, {"processor": AttnProcessor()}],
    ),
    "feed forward": (
        plain.is_plain_feed_forward,
        lambda **more: FeedForward(8, **more).eval(),
        [{"final_dropout": True}],
    ),
}


@pytest.mark.parametrize(("ask", "make", "others"), CASES.values(), ids=CASES)
def test_only_what_is_known_and_not_watched_is_plain(ask, make, others) -> None:
    given = {"activation_fn": "geglu"}
    given = given if make not in (resnet, attention) else {}
    assert ask(make(**given))
    for more in others:
        assert not ask(make(**{**given, **more})), more
    watched = make(**given)
    inside = next(module for name, module in watched.named_modules() if "norm" in name or name in ("net.0", "to_out.1"))
    inside.register_forward_hook(lambda *_: None)
    assert not ask(watched)


def test_dropout_that_is_at_work_is_not_plain() -> None:
    for case in ("resnet", "attention"):
        ask, make, _ = CASES[case]
        assert not ask(make(dropout=0.5).train())


def test_bare_is_what_nobody_watches_or_replaced() -> None:
    modules = [nn.Linear(2, 2) for _ in range(3)]
    assert plain.are_bare(*modules)
    for watch in (
        lambda module: module.register_forward_hook(lambda *_: None),
        lambda module: module.register_forward_pre_hook(lambda *_: None),
        lambda module: setattr(module, "forward", module.forward),
    ):
        watched = nn.Linear(2, 2)
        watch(watched)
        assert not plain.are_bare(*modules, watched)


def test_norms_go_into_quantized_layers(quantized: Callable[..., QuantizedLinear]) -> None:
    assert plain.folds(quantized(nn.Linear(4, 4), "W8A8"))
    assert plain.folds(quantized(nn.Linear(4, 4), "W8A8 float"))
    assert not plain.folds(nn.Linear(4, 4))
