from dataclasses import replace

import torch

from mixdq.runtime.kernels.gpu.tensors import LayerTensors, Window
from mixdq.runtime.kernels.gpu.weights import weight_order

TENSORS = LayerTensors(
    planes=(torch.zeros(1, 32, dtype=torch.int8),),
    order=weight_order(8, 3, 1, of_floats=False),
    zero_points=None,
    sums=torch.zeros(1, dtype=torch.int32),
    scale=torch.ones(1),
    bias=None,
    input_scale=torch.ones(1),
    input_zero_point=torch.zeros(1, dtype=torch.int32),
    low=-8,
    high=7,
)


def test_who_is_dynamic_has_codes_but_no_scale() -> None:
    assert TENSORS.of_codes
    assert not TENSORS.dynamic
    assert replace(TENSORS, input_scale=None).dynamic
    assert not replace(TENSORS, input_scale=None, low=0, high=0).dynamic


def test_only_a_window_of_one_pixel_in_its_place_is_a_pixel() -> None:
    assert Window().is_pixel
    assert Window(dilation=(2, 2)).is_pixel
    for other in (Window(kernel=(1, 3)), Window(stride=(1, 2)), Window(padding=(1, 0))):
        assert not other.is_pixel
