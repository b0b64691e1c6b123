from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from mixdq.errors import NonFiniteError
from mixdq.quant.weights import dequantize_weight, quantize_weight
from mixdq.runtime.backends.cpu import CpuBackend
from mixdq.runtime.backends.reference import ReferenceBackend
from mixdq.runtime.kernel import MAX_DEPTH, HoldingKernel, KernelRequest
from mixdq.runtime.kernels import native
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import QParams, QuantSpec

CPU, REFERENCE = CpuBackend(), ReferenceBackend()
REQUEST = KernelRequest(
    layer="mid.to_q",
    op="linear",
    bits=LayerBits(weight=8, activation=8),
    weight_shape=(40, 24),
    device="cpu",
    dtype=torch.float32,
    output_dtype=torch.float32,
)
ACTIVATION = QParams(
    scale=torch.tensor(0.03),
    zero_point=torch.tensor(-7, dtype=torch.int32),
    spec=QuantSpec(num_bits=8, symmetric=False),
)

pytestmark = pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))


def both(request: KernelRequest, x: torch.Tensor, *, symmetric: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of this backend and of the reference, for a random weight and bias."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(request.weight_shape, generator=generator)
    bias = torch.randn(request.weight_shape[0], generator=generator)
    (part,) = quantize_weight(weight, request.bits.weight, symmetric=symmetric)
    request, activation = replace(request, symmetric=symmetric), None if request.dynamic else ACTIVATION
    return tuple(backend.bind(request, part, bias, activation)(x) for backend in (CPU, REFERENCE))  # type: ignore


@pytest.mark.parametrize("rows", [*range(1, 30), 77, 256])
def test_every_height_of_a_tile(rows: int) -> None:
    x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(rows))
    found, expected = both(REQUEST, x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100])
@pytest.mark.parametrize("dtype", list(native.DTYPES), ids=str)
def test_every_width_of_a_panel_in_every_dtype(columns: int, dtype: torch.dtype) -> None:
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(columns)).to(dtype)
    request = replace(REQUEST, weight_shape=(columns, 24), dtype=dtype, output_dtype=dtype)
    found, expected = both(request, x)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 6, 7])
def test_packed_weights_with_zero_points(num_bits: int) -> None:
    x = torch.randn(20, 301, generator=torch.Generator().manual_seed(num_bits))
    request = replace(REQUEST, bits=LayerBits(weight=num_bits, activation=8), weight_shape=(70, 301))
    found, expected = both(request, x, symmetric=False)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("num_bits", [4, 8])
def test_any_number_of_threads_and_more_weight_than_one_bundle(threads: int, num_bits: int) -> None:
    # 40 panels of 1,300 channels: more than the bytes that stay together.
    request = replace(REQUEST, bits=LayerBits(weight=num_bits, activation=8), weight_shape=(1280, 1300))
    x = torch.randn(37, 1300, generator=torch.Generator().manual_seed(threads))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found, expected = both(request, x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped", "one picture"])
@pytest.mark.parametrize("size", [(8, 8), (16, 33), (5, 1)])
def test_convolutions_of_pictures_in_any_layout(layout: str, size: tuple[int, int]) -> None:
    request = replace(REQUEST, op="conv2d", weight_shape=(50, 6, 3, 3), padding=(1, 1))
    x = torch.randn(2, 6, size[0] + 2, size[1] + 2, generator=torch.Generator().manual_seed(0))
    x = x[..., 1:-1, 1:-1]
    if layout == "one picture":
        x = x[0]
    elif layout != "cropped":
        names = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
        x = x.contiguous(memory_format=names[layout])
    found, expected = both(request, x)
    assert torch.equal(found, expected)


def test_outputs_of_convolutions_are_channels_last() -> None:
    request = replace(REQUEST, op="conv2d", weight_shape=(8, 4, 3, 3), padding=(1, 1))
    found, _ = both(request, torch.randn(2, 4, 6, 6))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_the_longest_sum_of_sdxl_at_the_ends_of_both_grids() -> None:
    depth = 9 * 2560
    weight = torch.full((1, depth), -1.0)
    (part,) = quantize_weight(weight, 8)
    activation = QParams(
        scale=torch.tensor(1.0), zero_point=torch.tensor(-128, dtype=torch.int32), spec=ACTIVATION.spec
    )
    request = replace(REQUEST, weight_shape=(1, depth))
    x = torch.full((3, depth), 255.0)
    kernel = CPU.bind(request, part, None, activation)
    exact = -255.0 * 127 * depth * float(part.qparams.scale)
    assert kernel(x).flatten().tolist() == pytest.approx([exact] * 3, rel=4 * 2.0**-24)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", list(native.DTYPES), ids=str)
def test_what_no_integer_stands_for_is_named_with_its_layer(value: float, dynamic: bool, dtype: torch.dtype) -> None:
    x = torch.zeros(3, 24, dtype=dtype)
    x[1, 7] = value
    with pytest.raises(NonFiniteError, match=r"mid\.to_q"):
        both(replace(REQUEST, dynamic=dynamic, dtype=dtype, output_dtype=dtype), x)


def test_refusals_are_in_words() -> None:
    assert CPU.refusals(REQUEST) == []
    assert CPU.refusals(replace(REQUEST, bits=LayerBits(weight=2, activation=8), symmetric=False)) == []
    assert "not on cuda" in CPU.refusals(replace(REQUEST, device="cuda"))[0]
    assert "float64" in CPU.refusals(replace(REQUEST, dtype=torch.float64))[0]
    assert "zero points" in CPU.refusals(replace(REQUEST, symmetric=False))[0]
    assert "overflow" in CPU.refusals(replace(REQUEST, weight_shape=(1, MAX_DEPTH + 1)))[0]
    assert "floating point" in CPU.refusals(replace(REQUEST, bits=LayerBits(weight=16, activation=8)))[0]


def test_without_a_compiler_it_refuses_and_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setattr(native, "trouble", lambda: "no C compiler found (cc): install one")
    for activation in (8, 16):
        request = replace(REQUEST, bits=LayerBits(weight=4, activation=activation))
        assert CPU.refusals(request) == ["no C compiler found (cc): install one"]


def test_a_part_of_a_joined_input_leaves_in_float32() -> None:
    x = torch.randn(4, 24).to(torch.bfloat16)
    found, expected = both(replace(REQUEST, dtype=torch.bfloat16), x)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


WEIGHT_ONLY = [
    ((40, 24), (7, 24), {}),
    ((33, 5), (3, 29, 5), {}),
    ((8, 4, 3, 3), (2, 4, 6, 17), {"padding": (1, 1)}),
    ((6, 3, 3, 2), (1, 6, 9, 11), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2), "groups": 2}),
]


@pytest.mark.parametrize(("weight_shape", "shape", "geometry"), WEIGHT_ONLY)
@pytest.mark.parametrize(("num_bits", "symmetric"), [(2, True), (4, False), (5, True), (8, True), (8, False)])
@pytest.mark.parametrize("dtype", list(native.DTYPES), ids=str)
def test_weight_only_layers_multiply_the_dequantized_weight(
    weight_shape, shape, geometry, num_bits, symmetric, dtype
) -> None:
    generator = torch.Generator().manual_seed(num_bits)
    (part,) = quantize_weight(torch.randn(weight_shape, generator=generator), num_bits, symmetric=symmetric)
    bias, x = (torch.randn(size, generator=generator) for size in (weight_shape[0], shape))
    request = replace(
        REQUEST,
        op="linear" if len(weight_shape) == 2 else "conv2d",
        bits=LayerBits(weight=num_bits, activation=16),
        weight_shape=weight_shape,
        symmetric=symmetric,
        dtype=dtype,
        **geometry,
    )
    x = x.to(dtype)
    found = CPU.bind(request, part, bias, None)(x)
    weight = dequantize_weight((part,)).to(torch.float64)
    arguments = tuple(geometry.get(name, fill) for name, fill in (("stride", 1), ("padding", 0), ("dilation", 1)))
    arguments = (*arguments, geometry.get("groups", 1))

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x, weight, bias = x.to(torch.float64), weight.to(torch.float64), bias.to(torch.float64)
        if request.op == "linear":
            return functional.linear(x, weight, bias)
        return functional.conv2d(x, weight, bias, *arguments)

    # A float32 sum of n products is off by at most n roundings of the sum of their magnitudes.
    bound = product(x.abs(), weight.abs(), bias.abs()) * (weight[0].numel() + 3) * 2.0**-24
    assert found.dtype == request.output_dtype
    assert bool(((found.to(torch.float64) - product(x, weight, bias)).abs() <= bound).all())


@pytest.mark.parametrize("bits", [LayerBits(weight=4, activation=16), LayerBits(weight=8, activation=8)], ids=str)
def test_scales_may_lie_anywhere_in_memory(bits: LayerBits) -> None:
    # As those of one part do, which are a column of the layer's.
    (part,) = quantize_weight(torch.randn(40, 24, generator=torch.Generator().manual_seed(2)), bits.weight)
    wide = torch.full((40, 2), torch.nan)
    wide[:, :1] = part.qparams.scale
    column = replace(part, qparams=replace(part.qparams, scale=wide[:, :1]))
    request = replace(REQUEST, bits=bits, dynamic=bits.activation == 8)
    x = torch.randn(7, 24, generator=torch.Generator().manual_seed(3))
    assert torch.equal(CPU.bind(request, column, None, None)(x), CPU.bind(request, part, None, None)(x))


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (33, 5), (70, 8, 3, 3), (6, 1, 1, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_panels_give_the_portable_codes_back(num_bits: int, shape: tuple[int, ...], groups: int) -> None:
    if shape[0] % groups or (groups > 1 and len(shape) == 2):
        pytest.skip("no such layer")
    symmetric = num_bits == 8
    (part,) = quantize_weight(torch.randn(shape), num_bits, symmetric=symmetric)
    request = replace(
        REQUEST,
        op="linear" if len(shape) == 2 else "conv2d",
        bits=LayerBits(weight=num_bits, activation=8),
        weight_shape=shape,
        groups=groups,
        symmetric=symmetric,
    )
    kernel = CPU.bind(request, part, None, ACTIVATION)
    assert isinstance(kernel, HoldingKernel)
    assert torch.equal(kernel.portable_codes(), part.codes)
    assert kernel.portable_codes().is_contiguous()
