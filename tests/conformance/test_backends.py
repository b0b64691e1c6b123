"""One suite over every backend: integer accumulators exact, the float epilogue within the declared tolerance.

The oracle is numpy in int64, written from the definition with loops over the kernel window: no code is shared with any
backend. With scales of 1 and no bias an output is the accumulator itself, as long as it is below 2^24.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from mixdq.quant.packing import pack
from mixdq.runtime.kernel import Backend, KernelRequest
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.select import BACKENDS
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import QParams, QTensor, QuantSpec

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

# Triton's interpreter is slow.
EXAMPLES = 8 if available.interpreted() else 40

pytestmark = [
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name),
]

Integers = NDArray[np.int64]

many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def draw_codes(data: st.DataObject, shape: tuple[int, ...], spec: QuantSpec) -> Integers:
    """Codes that reach both ends of the grid."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    return rng.integers(spec.code_min, spec.code_max, size=shape, endpoint=True)


def as_weight(codes: Integers, spec: QuantSpec, scale: Tensor, zero_point: Tensor | None, device: str) -> QTensor:
    out = codes.shape[0]
    column = (out,) + (1,) * (codes.ndim - 1)
    tensor = torch.from_numpy(codes.astype(np.int8))
    packed = tensor if spec.num_bits == 8 else pack(tensor.reshape(out, -1), spec.num_bits)
    qparams = QParams(
        scale=scale.reshape(column).to(device),
        zero_point=None if zero_point is None else zero_point.reshape(column).to(device),
        spec=spec,
    )
    return QTensor(codes=packed.to(device), qparams=qparams, shape=codes.shape)


def as_activation(spec: QuantSpec, scale: float, zero_point: int, device: str) -> QParams:
    return QParams(
        scale=torch.tensor(scale, device=device),
        zero_point=torch.tensor(zero_point, dtype=torch.int32, device=device),
        spec=spec,
    )


def strided(data: st.DataObject, x: Tensor) -> Tensor:
    """The same numbers in another memory order: as it comes, a slice of something wider, or axes turned round."""
    how = data.draw(st.sampled_from(["contiguous", "slice", "transposed", "channels_last"]), label="memory")
    if how == "slice":
        wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), 77.0, device=x.device, dtype=x.dtype)
        wide[..., 2:-1] = x
        return wide[..., 2:-1]
    if how == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x


def willing(backend: Backend, request: KernelRequest) -> None:
    """Leave a drawn request aside that the backend refuses; skip the test where it refuses the plainest one."""
    plain = replace(request, bits=LayerBits(weight=8, activation=8), symmetric=True)
    refusals = backend.refusals(plain)
    if refusals:
        pytest.skip(f"{backend.name}: {'; '.join(refusals)}")
    if backend.refusals(request):
        reject()


def linear_oracle(x: Integers, weight: Integers) -> Integers:
    return np.einsum("...i,oi->...o", x, weight)


def conv_oracle(
    x: Integers,
    weight: Integers,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Integers:
    """Cross-correlation with real zeros around, one window position at a time."""
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    out, in_group, kernel_h, kernel_w = weight.shape
    height = (x.shape[2] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    width = (x.shape[3] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    y = np.zeros((x.shape[0], out, height, width), dtype=np.int64)
    for o in range(out):
        first = (o // (out // groups)) * in_group
        for i in range(in_group):
            for p in range(kernel_h):
                for q in range(kernel_w):
                    rows = slice(p * dilation[0], p * dilation[0] + (height - 1) * stride[0] + 1, stride[0])
                    columns = slice(q * dilation[1], q * dilation[1] + (width - 1) * stride[1] + 1, stride[1])
                    y[:, o] += weight[o, i, p, q] * x[:, first + i, rows, columns]
    return y


def exact_in_float32(accumulator: Integers) -> Tensor:
    assert np.abs(accumulator).max(initial=0) < 2**24
    return torch.from_numpy(accumulator.astype(np.float32))


@many
@given(data=st.data())
def test_linear_accumulators_equal_the_oracle_bit_for_bit(backend: Backend, device: str, data: st.DataObject) -> None:
    w_spec, a_spec, z_w, z_x = draw_specs(data)
    features, out = data.draw(st.integers(1, 67), label="in"), data.draw(st.integers(1, 35), label="out")
    leading = data.draw(st.sampled_from([(), (1,), (5,), (1, 7), (3, 4), (8, 2), (2, 1), (0,), (2, 0)]), label="rows")
    request = KernelRequest(
        layer="linear",
        op="linear",
        bits=LayerBits(weight=w_spec.num_bits, activation=a_spec.num_bits),
        weight_shape=(out, features),
        symmetric=w_spec.symmetric,
        device=device,
        dtype=torch.float32,
        output_dtype=torch.float32,
    )
    willing(backend, request)
    w, x = draw_codes(data, (out, features), w_spec), draw_codes(data, (*leading, features), a_spec)
    weight = as_weight(w, w_spec, torch.ones(out), None if z_w is None else torch.full((out,), z_w), device)
    kernel = backend.bind(request, weight, None, as_activation(a_spec, 1.0, z_x, device))
    real = strided(data, torch.from_numpy((x - z_x).astype(np.float32)).to(device))
    y = kernel(real).cpu()
    assert torch.equal(y, exact_in_float32(linear_oracle(x - z_x, w - (z_w or 0))))


@many
@given(data=st.data())
def test_conv2d_accumulators_and_borders_equal_the_oracle_bit_for_bit(
    backend: Backend, device: str, data: st.DataObject
) -> None:
    w_spec, a_spec, z_w, z_x = draw_specs(data)
    groups = data.draw(st.sampled_from([1, 1, 1, 2, 3]), label="groups")
    in_group, out_group = data.draw(st.integers(1, 9), label="in"), data.draw(st.integers(1, 7), label="out")
    window = data.draw(st.sampled_from([(1, 1), (3, 3), (3, 1), (2, 5)]), label="window")
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), label="stride")
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)), label="padding")
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)), label="dilation")
    batch = data.draw(st.integers(1, 8), label="batch")
    # At least one window position.
    least = [max(1, dilation[i] * (window[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    size = [least[i] + data.draw(st.integers(0, 5), label="size") for i in (0, 1)]
    shape = (groups * out_group, in_group, *window)
    request = KernelRequest(
        layer="conv",
        op="conv2d",
        bits=LayerBits(weight=w_spec.num_bits, activation=a_spec.num_bits),
        weight_shape=shape,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        symmetric=w_spec.symmetric,
        device=device,
        dtype=torch.float32,
        output_dtype=torch.float32,
    )
    willing(backend, request)
    w = draw_codes(data, shape, w_spec)
    x = draw_codes(data, (batch, groups * in_group, *size), a_spec)
    weight = as_weight(w, w_spec, torch.ones(shape[0]), None if z_w is None else torch.full((shape[0],), z_w), device)
    kernel = backend.bind(request, weight, None, as_activation(a_spec, 1.0, z_x, device))
    real = strided(data, torch.from_numpy((x - z_x).astype(np.float32)).to(device))
    y = kernel(real).cpu()
    expected = conv_oracle(x - z_x, w - (z_w or 0), stride, padding, dilation, groups)
    assert torch.equal(y, exact_in_float32(expected))


@many
@given(data=st.data())
def test_the_float_epilogue_lies_within_the_declared_tolerance(
    backend: Backend, device: str, data: st.DataObject
) -> None:
    w_spec, a_spec, z_w, z_x = draw_specs(data)
    features, out, rows = data.draw(st.integers(1, 65)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    w, x = draw_codes(data, (out, features), w_spec), draw_codes(data, (rows, features), a_spec)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    w_scale = torch.rand(out, generator=generator) + 1e-3
    # A power of two, so that quantizing the input gives the codes back.
    a_scale = 2.0 ** data.draw(st.integers(-12, 3), label="input scale")
    bias = torch.randn(out, generator=generator) * 10.0
    request = KernelRequest(
        layer="linear",
        op="linear",
        bits=LayerBits(weight=w_spec.num_bits, activation=a_spec.num_bits),
        weight_shape=(out, features),
        symmetric=w_spec.symmetric,
        device=device,
        dtype=torch.float32,
        output_dtype=torch.float32,
    )
    willing(backend, request)
    weight = as_weight(w, w_spec, w_scale, None if z_w is None else torch.full((out,), z_w), device)
    kernel = backend.bind(request, weight, bias.to(device), as_activation(a_spec, a_scale, z_x, device))
    y = kernel(torch.from_numpy((x - z_x).astype(np.float32) * np.float32(a_scale)).to(device)).cpu().double().numpy()
    product = linear_oracle(x - z_x, w - (z_w or 0)) * (w_scale.double().numpy() * a_scale)
    bound = backend.tolerance * (np.abs(product) + np.abs(bias.double().numpy()))
    assert (np.abs(y - (product + bias.double().numpy())) <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_inputs_beyond_the_range_saturate_and_halves_round_up_to_even(
    backend: Backend, device: str, dtype: torch.dtype
) -> None:
    request = KernelRequest(
        layer="linear",
        op="linear",
        bits=LayerBits(weight=8, activation=8),
        weight_shape=(1, 1),
        device=device,
        dtype=dtype,
        output_dtype=dtype,
    )
    willing(backend, request)
    spec = QuantSpec(num_bits=8, symmetric=True, channel_axis=0)
    weight = as_weight(np.ones((1, 1), dtype=np.int64), spec, torch.ones(1), None, device)
    kernel = backend.bind(request, weight, None, as_activation(QuantSpec(num_bits=8, symmetric=False), 1.0, 3, device))
    x = torch.tensor([[-1000.0], [0.5], [1.5], [2.5], [-0.5], [1000.0]], dtype=dtype, device=device)
    y = kernel(x)
    assert y.dtype == dtype
    # Codes end at -128 and 127, the zero point is 3.
    assert y.flatten().tolist() == [-131.0, 0.0, 2.0, 2.0, 0.0, 124.0]


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weight_only_products_are_float_products_of_the_dequantized_weight(
    backend: Backend, device: str, dtype: torch.dtype, num_bits: int
) -> None:
    request = KernelRequest(
        layer="linear",
        op="linear",
        bits=LayerBits(weight=num_bits, activation=16),
        weight_shape=(5, 11),
        device=device,
        dtype=dtype,
        output_dtype=dtype,
    )
    willing(backend, request)
    spec = QuantSpec(num_bits=num_bits, symmetric=True, channel_axis=0)
    rng = np.random.default_rng(num_bits)
    codes = rng.integers(spec.code_min, spec.code_max, size=(5, 11), endpoint=True)
    scale = torch.rand(5, generator=torch.Generator().manual_seed(0)) + 0.1
    kernel = backend.bind(request, as_weight(codes, spec, scale, None, device), None, None)
    x = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    real = (torch.from_numpy(codes).float() * scale.unsqueeze(1)).to(dtype).double()
    exact = x.cpu().double() @ real.T
    # 11 products of float32 or better, summed in any order, and one rounding to the dtype.
    magnitude = x.cpu().double().abs() @ real.abs().T
    bound = magnitude * (12 * 2.0**-24 + torch.finfo(dtype).eps)
    assert ((kernel(x).cpu().double() - exact).abs() <= bound).all()


def draw_specs(data: st.DataObject) -> tuple[QuantSpec, QuantSpec, int | None, int]:
    """Specs of weight and input, the weight's zero point (None where symmetric), the input's."""
    symmetric = data.draw(st.booleans(), label="symmetric")
    weight = QuantSpec(num_bits=data.draw(st.integers(2, 8), label="W"), symmetric=symmetric, channel_axis=0)
    activation = QuantSpec(num_bits=data.draw(st.integers(2, 8), label="A"), symmetric=False)
    z_w = None if symmetric else data.draw(st.integers(weight.code_min, weight.code_max), label="weight zero point")
    z_x = data.draw(st.integers(activation.code_min, activation.code_max), label="input zero point")
    return weight, activation, z_w, z_x
