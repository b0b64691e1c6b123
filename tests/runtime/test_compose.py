import pytest
import torch
from torch import Tensor

from mixdq.errors import BosNotConstantError
from mixdq.quant.bos import BosRow, BosRows
from mixdq.runtime.compose import BesideBosRow, JoinedInput, PaddedInput
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
