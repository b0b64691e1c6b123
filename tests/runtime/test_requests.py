import pytest
import torch
from torch import nn

from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.requests import borders, kernel_requests
from mixdq.types.plan import LayerBits

LAYOUT = LayerLayout(name="a", bits=LayerBits(weight=4, activation=8))
JOINED = LayerLayout(name="a", bits=LayerBits(weight=4, activation=8), splits=(4, 2))


def test_a_layer_asks_once_in_its_own_dtype() -> None:
    (request,) = kernel_requests(
        nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=(1, 2), groups=2), LAYOUT, device="cpu", dtype=torch.float16
    )
    assert (request.op, request.weight_shape, request.groups) == ("conv2d", (8, 3, 3, 3), 2)
    assert (request.stride, request.padding, request.dilation) == ((2, 2), (1, 1), (1, 2))
    assert (request.dtype, request.output_dtype) == (torch.float16, torch.float16)


@pytest.mark.parametrize(("module", "tail"), [(nn.Linear(6, 8), ()), (nn.Conv2d(6, 8, 1), (1, 1))])
def test_parts_ask_each_for_itself_and_add_in_float32(module: nn.Linear | nn.Conv2d, tail: tuple[int, ...]) -> None:
    requests = kernel_requests(module, JOINED, device="cpu", dtype=torch.bfloat16)
    assert [request.weight_shape for request in requests] == [(8, 4, *tail), (8, 2, *tail)]
    assert {request.output_dtype for request in requests} == {torch.float32}


@pytest.mark.parametrize("module", [nn.Linear(6, 8), nn.Conv2d(6, 8, 1)])
def test_only_quantized_inputs_are_asked_to_be_scaled_at_run_time(module: nn.Linear | nn.Conv2d) -> None:
    for activation, expected in ((8, True), (16, False)):
        layout = LayerLayout(name="a", bits=LayerBits(weight=4, activation=activation), splits=(4, 2), dynamic=True)
        requests = kernel_requests(module, layout, device="cpu", dtype=torch.float32)
        assert [request.dynamic for request in requests] == [expected] * 2


def test_groups_do_not_cross_parts() -> None:
    with pytest.raises(ValueError, match="2 parts with 2 groups"):
        kernel_requests(nn.Conv2d(12, 8, 1, groups=2), JOINED, device="cpu", dtype=torch.float32)


def test_borders_go_to_the_kernel_only_where_they_are_symmetric_zeros() -> None:
    assert borders(nn.Conv2d(1, 1, 3, padding=(2, 1))).kernel == (2, 1)
    assert borders(nn.Conv2d(1, 1, 3, padding="same")).kernel == (1, 1)
    assert borders(nn.Conv2d(1, 1, 3, padding="valid")).kernel == (0, 0)
    unequal = borders(nn.Conv2d(1, 1, (3, 4), padding="same"))
    assert (unequal.kernel, unequal.explicit, unequal.mode) == ((0, 0), (1, 2, 1, 1), "constant")
    circular = borders(nn.Conv2d(1, 1, 3, padding=(2, 1), padding_mode="circular"))
    assert (circular.kernel, circular.explicit, circular.mode) == ((0, 0), (1, 1, 2, 2), "circular")


def test_convolutions_of_floats_are_not_asked() -> None:
    floats = LayerLayout(name="a", bits=LayerBits.parse("W8A8 float"))
    (request,) = kernel_requests(nn.Linear(6, 8), floats, device="cpu", dtype=torch.float32)
    assert request.bits.is_float
    with pytest.raises(ValueError, match="a: W8A8 float is for Linear layers; a Conv2d takes W8A8"):
        kernel_requests(nn.Conv2d(6, 8, 1), floats, device="cpu", dtype=torch.float32)
