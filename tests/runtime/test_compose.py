import pytest
import torch
from torch import Tensor

from mixdq.errors import BosNotConstantError
from mixdq.quant.bos import BosRow, BosRows
from mixdq.runtime.before import GEGLU, NOTHING, SILU, Before, group_norm
from mixdq.runtime.compose import BesideBosRow, FoldingJoinedInput, JoinedInput, PaddedInput, joined
from mixdq.runtime.requests import Borders


def double(x: Tensor) -> Tensor:
    return 2.0 * x.float()


def test_joined_parts_are_added_in_float32_and_cast_once() -> None:
    joined = JoinedInput((double, torch.Tensor.float), (3, 3), -1, torch.float16)
    x = torch.arange(12.0, dtype=torch.float16).reshape(2, 6)
    y = joined(x)
    assert y.dtype == torch.float16
    assert torch.equal(y, (2 * x[:, :3].float() + x[:, 3:].float()).half())


def test_channels_of_a_picture_are_the_third_axis_from_the_end() -> None:
    joined = JoinedInput((double, double), (1, 1), -3, torch.float32)
    x = torch.randn(2, 2, 4, 4)
    assert torch.equal(joined(x), 2 * x[:, :1] + 2 * x[:, 1:])
    assert torch.equal(joined(x[0]), joined(x)[0])


class Folding:
    """A part's kernel that folds, by torch; it adds all channels up."""

    def __call__(self, x: Tensor, /) -> Tensor:
        return x.float().sum(1, keepdim=True)

    def by_channel(self, whole: Tensor, before: Before, /) -> Before:
        if before.weight is None or before.bias is None:
            return before
        parts = whole.unflatten(1, (before.groups, -1))
        mean, rstd = parts.mean((2, 3, 4)), (parts.var((2, 3, 4), correction=0) + before.eps).rsqrt()
        size = parts.shape[2]
        weight = rstd.repeat_interleave(size, 1) * before.weight
        bias = before.bias - mean.repeat_interleave(size, 1) * weight
        return before._replace(kind="affine", weight=weight, bias=bias)

    def folded(self, x: Tensor, before: Before, added: Tensor | None, /, dtype: torch.dtype | None = None) -> Tensor:
        y = self(before(x, -3))
        return (y if added is None else added + y).to(dtype)


def test_a_joined_input_folds_where_all_its_parts_do() -> None:
    assert type(joined((Folding(), double), (3, 3), -3, torch.float32)) is JoinedInput
    assert type(joined((Folding(), Folding()), (3, 3), -3, torch.float32)) is FoldingJoinedInput


@pytest.mark.parametrize("kind", ["group norm", "SiLU", "nothing", "gate"])
def test_folded_each_part_is_given_its_channels_of_what_stands_before_the_whole(kind: str) -> None:
    norm = torch.nn.GroupNorm(2, 6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    before = {"group norm": group_norm(norm, silu=True), "SiLU": SILU, "nothing": NOTHING, "gate": GEGLU}[kind]
    x = torch.randn(2, 12 if kind == "gate" else 6, 3, 5)
    added = torch.randn(2, 1, 1, 5)
    kernel = FoldingJoinedInput((Folding(),) * 3, (2, 3, 1), -3, torch.float32)
    torch.testing.assert_close(kernel.folded(x, before, added), kernel(before(x, -3)) + added)


def test_the_first_token_never_reaches_the_kernel() -> None:
    seen = []

    def kernel(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    bos = BosRow(input=torch.tensor([8.0, 6.0]), output=torch.tensor([1.0, -1.0]))
    x = torch.randn(3, 4, 2)
    x[:, 0] = torch.tensor([[8.0, 6.0], [0.0, 0.0], [4.0, 3.0]])
    y = BesideBosRow(kernel, BosRows(bos, None, name="to_k"))(x)
    assert torch.equal(seen[0], x[:, 1:])
    assert torch.equal(y[:, 1:], x[:, 1:])
    # An ordinary prompt, the zeros of an empty negative one, and half the weight.
    assert torch.allclose(y[:, 0], torch.tensor([[1.0, -1.0], [0.0, 0.0], [0.5, -0.5]]))


def test_another_first_token_is_refused_with_the_layers_name() -> None:
    bos = BosRow(input=torch.tensor([8.0, 6.0]), output=torch.tensor([1.0, -1.0]))
    with pytest.raises(BosNotConstantError, match=r"up\.to_k"):
        BesideBosRow(double, BosRows(bos, None, name="up.to_k"))(torch.tensor([[[6.0, -8.0], [1.0, 1.0]]]))


def test_padding_is_added_before_the_kernel() -> None:
    padded = PaddedInput(double, Borders(kernel=(0, 0), explicit=(1, 2, 0, 1), mode="circular"))
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    assert torch.equal(padded(x), 2 * torch.nn.functional.pad(x, (1, 2, 0, 1), mode="circular"))
