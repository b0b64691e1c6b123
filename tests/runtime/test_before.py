"""What stands before a layer, in plain torch: what the modules give that it is made of."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mixdq.runtime.before import GEGLU, NOTHING, SILU, Before, group_norm, layer_norm


def norm_of(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, -2.0, 2.0)
    return norm


def test_a_group_norm_is_the_modules_of_pictures_and_of_their_tokens() -> None:
    norm, x = norm_of(nn.GroupNorm(3, 6, eps=0.1)), torch.randn(2, 6, 4, 5)
    assert isinstance(norm, nn.GroupNorm)
    assert torch.equal(group_norm(norm, silu=False)(x, -3), norm(x))
    assert torch.equal(group_norm(norm, silu=True)(x, -3), functional.silu(norm(x)))
    tokens = x.permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(group_norm(norm, silu=False)(tokens, -1), norm(x).permute(0, 2, 3, 1).flatten(1, 2))


@pytest.mark.parametrize("axis", [-1, -3])
def test_affine_it_has_numbers_for_each_picture_and_parts_for_each_part_of_the_channels(axis: int) -> None:
    x, weight, bias = torch.randn(2, 6, 4, 5).half(), torch.randn(2, 6), torch.randn(2, 6)
    wanted = functional.silu((x * weight[..., None, None] + bias[..., None, None]).half())
    if axis == -1:
        x, wanted = (each.permute(0, 2, 3, 1).flatten(1, 2) for each in (x, wanted))
    before = Before("affine", weight, bias, silu=True)
    assert torch.equal(before(x, axis), wanted)
    parts = zip(before.of_parts([2, 4]), x.split([2, 4], axis), strict=True)
    assert torch.equal(torch.cat([part(each, axis) for part, each in parts], axis), wanted)
    assert SILU.of_parts([2, 4]) == [SILU, SILU]


def test_a_layer_norm_is_the_modules() -> None:
    norm, x = norm_of(nn.LayerNorm(6, eps=0.1)), torch.randn(2, 5, 6)
    assert isinstance(norm, nn.LayerNorm)
    assert torch.equal(layer_norm(norm)(x, -1), norm(x))


def test_a_gate_halves_the_channels() -> None:
    x = torch.randn(2, 5, 6)
    assert torch.equal(GEGLU(x, -1), x[..., :3] * functional.gelu(x[..., 3:]))
    assert [before.narrowed(6) for before in (GEGLU, SILU, NOTHING)] == [3, 6, 6]


def test_only_nothing_is_nothing() -> None:
    x: Tensor = torch.randn(3)
    assert torch.equal(NOTHING(x, -1), x)
    assert torch.equal(SILU(x, -1), functional.silu(x))
    assert [before.is_nothing for before in (NOTHING, SILU, GEGLU)] == [True, False, False]
