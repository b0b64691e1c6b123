from dataclasses import replace

import numpy as np
import pytest
import torch

from mixdq.errors import NonFiniteError
from mixdq.quant.affine import dequantize, fake_quantize
from mixdq.quant.qparams import activation_qparams
from mixdq.quant.weights import quantize_weight, weight_codes
from mixdq.runtime.backends.reference import ReferenceBackend, integer_product
from mixdq.runtime.kernel import KernelRequest
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange, QParams, QuantSpec

REFERENCE = ReferenceBackend()
REQUEST = KernelRequest(
    layer="mid.to_q",
    op="linear",
    bits=LayerBits(weight=8, activation=8),
    weight_shape=(2, 4),
    device="cpu",
    dtype=torch.float32,
    output_dtype=torch.float32,
)
ACTIVATION = QParams(
    scale=torch.tensor(0.05),
    zero_point=torch.tensor(-7, dtype=torch.int32),
    spec=QuantSpec(num_bits=8, symmetric=False),
)


def test_sums_beyond_float32_stay_exact() -> None:
    # The longest sum of SDXL: 3 x 3 windows over 2,560 channels; every product at the end of the grids.
    inner = 9 * 2560
    x = np.full((1, inner), -255, dtype=np.int64)
    weight = np.full((1, inner), 127, dtype=np.int64)
    x[0, 0], weight[0, 0] = 1, 1
    expected = int((x @ weight.T)[0, 0])
    assert abs(expected) > 2**24
    found = integer_product(torch.from_numpy(x).double(), torch.from_numpy(weight).double(), REQUEST)
    assert int(found.item()) == expected


def test_sums_of_a_convolution_are_whole_whatever_algorithm_a_library_takes() -> None:
    request = replace(REQUEST, op="conv2d", weight_shape=(3, 2, 3, 3))
    x = torch.randint(-255, 256, (1, 2, 6, 5), dtype=torch.float64)
    weight = torch.randint(-127, 128, (3, 2, 3, 3), dtype=torch.float64)
    exact = integer_product(x, weight, request)
    assert torch.equal(integer_product(x * (1 + 1e-12), weight, request), exact)


def test_it_is_the_product_of_the_fake_quantized_tensors_up_to_float_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, 50, generator=generator), torch.randn(3, 50, generator=generator)
    bias = torch.randn(6, generator=generator)
    (part,) = quantize_weight(weight, 4)
    kernel = REFERENCE.bind(replace(REQUEST, weight_shape=(6, 50)), part, bias, ACTIVATION)
    fake_x = fake_quantize(x, ACTIVATION).double()
    fake_w = dequantize(weight_codes(part), part.qparams).double()
    exact = fake_x @ fake_w.T + bias.double()
    # Both factors of the float product are rounded once to float32, and the epilogue five times.
    magnitude = fake_x.abs() @ fake_w.abs().T + bias.double().abs()
    assert ((kernel(x).double() - exact).abs() <= 7 * 2.0**-24 * magnitude).all()


def test_the_epilogue_is_float32_whatever_the_model_is() -> None:
    (part,) = quantize_weight(torch.tensor([[3.0, -1.0, 0.5, 2.0], [0.0, 0.0, 0.0, 0.0]]), 8)
    bias = torch.tensor([1.0, 2.0], dtype=torch.float16)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float16)
    half = REFERENCE.bind(replace(REQUEST, output_dtype=torch.float16), part, bias, ACTIVATION)(x)
    full = REFERENCE.bind(REQUEST, part, bias.float(), ACTIVATION)(x.float())
    assert torch.equal(half, full.half())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dynamic", [False, True])
def test_non_finite_inputs_are_named_with_their_layer(value: float, dynamic: bool) -> None:
    (part,) = quantize_weight(torch.ones(2, 4), 8)
    kernel = REFERENCE.bind(replace(REQUEST, dynamic=dynamic), part, None, None if dynamic else ACTIVATION)
    with pytest.raises(NonFiniteError, match=r"mid\.to_q") as error:
        kernel(torch.tensor([[0.0, value, 0.0, 0.0]]))
    assert error.value.where == "mid.to_q"


def test_a_dynamic_row_is_what_a_static_scale_of_its_range_gives() -> None:
    (part,) = quantize_weight(torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), 8)
    x = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0], [7.0, 7.0, 7.0, 7.0], [1e30, 0.0, -1e30, 1.0]])
    found = REFERENCE.bind(replace(REQUEST, dynamic=True), part, None, None)(x)
    for row, y in zip(x, found, strict=True):
        known = ActivationRange(min=float(row.min()), max=float(row.max()), batches=1)
        assert torch.equal(REFERENCE.bind(REQUEST, part, None, activation_qparams(known, 8))(row), y)


def test_refusals() -> None:
    assert REFERENCE.refusals(REQUEST) == []
    assert "floating point" in REFERENCE.refusals(replace(REQUEST, bits=LayerBits(weight=16, activation=8)))[0]
    assert "float64" in REFERENCE.refusals(replace(REQUEST, device="mps"))[0]
