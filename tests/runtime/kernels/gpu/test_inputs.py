import pytest
import torch

pytest.importorskip("triton")

from mixdq.runtime.kernels.gpu.inputs import as_picture, power_of_2


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 2, 3, 7)])
def test_tokens_become_pixels_of_one_line_in_order(shape: tuple[int, ...]) -> None:
    x = torch.arange(torch.Size(shape).numel()).reshape(shape)
    picture = as_picture(x)
    assert picture.shape[1:3] == (7, 1)
    assert torch.equal(picture.permute(0, 2, 3, 1).reshape(-1, 7), x.reshape(-1, 7))
    assert picture.data_ptr() == x.data_ptr()


def test_texts_without_their_first_tokens_are_not_copied() -> None:
    x = torch.arange(42).reshape(2, 3, 7)
    picture = as_picture(x[:, 1:])
    assert picture.data_ptr() == x[:, 1:].data_ptr()
    assert torch.equal(picture.permute(0, 2, 3, 1).squeeze(1), x[:, 1:])


@pytest.mark.parametrize(("number", "wanted"), [(1, 1), (2, 2), (3, 4), (1024, 1024), (1025, 2048)])
def test_powers_of_two(number: int, wanted: int) -> None:
    assert power_of_2(number) == wanted
