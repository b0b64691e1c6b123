"""Codes of an activation against `mixdq.quant`, bit for bit; interpreted, or on a GPU."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from mixdq.quant.affine import quantize
from mixdq.quant.qparams import row_qparams
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.kernel import KernelRequest
from mixdq.runtime.kernels.gpu import activations, available
from mixdq.runtime.kernels.gpu.inputs import prepare
from mixdq.runtime.kernels.gpu.tensors import Window
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import QParams, QuantSpec

works = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

DEVICE = "cpu" if available.interpreted() else "cuda"
CONV = KernelRequest(
    layer="mid.conv",
    op="conv2d",
    bits=LayerBits(weight=8, activation=8),
    weight_shape=(1, 5, 3, 3),
    padding=(1, 2),
    device=DEVICE,
    dtype=torch.float32,
    output_dtype=torch.float32,
)


def prepared(request: KernelRequest, x: Tensor, activation: QParams | None) -> tuple[Tensor, Tensor, Tensor]:
    """The codes [batch, height, width, channels], borders and all, and scale and zero point of rows or pictures."""
    (part,) = quantize_weight(torch.ones(request.weight_shape, device=DEVICE), 8)
    kernel = CudaBackend().bind(request, part, None, activation)
    window = None if request.op == "linear" else Window(kernel=request.weight_shape[2:], padding=request.padding)
    made = prepare(x, kernel.layer.tensors, window, 1)
    return made.x[..., : x.shape[1]], made.row_scale, made.row_zero


def params(scale: float, zero_point: int, num_bits: int) -> QParams:
    return QParams(
        scale=torch.tensor(scale, device=DEVICE),
        zero_point=torch.tensor(zero_point, dtype=torch.int32, device=DEVICE),
        spec=QuantSpec(num_bits=num_bits, symmetric=False),
    )


@works
@settings(max_examples=10, derandomize=True)
@given(
    num_bits=st.integers(2, 8),
    scale=st.floats(2.0**-100, 2.0**100, width=32),
    where=st.floats(0.0, 1.0),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    last=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_static_codes_are_those_of_quant_and_borders_zero_points(num_bits, scale, where, dtype, last, seed) -> None:
    spec = QuantSpec(num_bits=num_bits, symmetric=False)
    activation = params(scale, round(spec.code_min + where * (spec.code_max - spec.code_min)), num_bits)
    generator = torch.Generator().manual_seed(seed)
    # Halves, where rounding is in doubt, numbers between and numbers beyond.
    steps = torch.randint(-2 * 2**num_bits, 2 * 2**num_bits, (2, 5, 4, 3), generator=generator) / 2
    steps += (torch.rand(steps.shape, generator=generator) - 0.5) * (torch.rand(steps.shape, generator=generator) < 0.5)
    limit = torch.finfo(dtype).max
    x = (steps.double() * scale).clamp(-limit, limit).to(dtype).to(DEVICE)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    bits = LayerBits(weight=8, activation=num_bits)
    codes, row_scale, row_zero = prepared(replace(CONV, bits=bits, dtype=dtype), x, activation)
    inside = torch.zeros(codes.shape[1:3], dtype=torch.bool, device=DEVICE)
    inside[1:-1, 2:-2] = True
    assert torch.equal(codes[:, 1:-1, 2:-2], quantize(x, activation).permute(0, 2, 3, 1))
    assert bool((codes[:, ~inside] == activation.zero_point).all())
    assert row_scale.tolist() == [float(activation.scale)] * 2
    assert row_zero.tolist() == [int(activation.zero_point)] * 2


@works
@settings(max_examples=10, derandomize=True)
@given(
    num_bits=st.integers(2, 8),
    op=st.sampled_from(["linear", "conv2d"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    magnitude=st.integers(-120, 120),
    seed=st.integers(0, 2**32 - 1),
)
def test_dynamic_scales_and_codes_are_those_of_quant(num_bits, op, dtype, magnitude, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 70, 1, 3, generator=generator).double() * 2.0**magnitude
    x *= 2.0 ** torch.randint(-8, 8, (2, 1, 1, 3), generator=generator)
    limit = torch.finfo(dtype).max
    x = x.clamp(-limit, limit).to(dtype).to(DEVICE)
    bits = LayerBits(weight=8, activation=num_bits)
    request = replace(CONV, weight_shape=(1, 70, 1, 1), padding=(0, 0), bits=bits, dynamic=True, dtype=dtype)
    request = replace(request, op=op, weight_shape=request.weight_shape[: 2 if op == "linear" else 4])
    codes, row_scale, row_zero = prepared(request, x, None)
    x = x.permute(0, 2, 3, 1)
    wanted = row_qparams(x, num_bits, axes=1 if op == "linear" else 3)
    assert torch.equal(codes, quantize(x, wanted))
    assert torch.equal(row_scale, wanted.scale.flatten())
    assert torch.equal(row_zero, wanted.zero_point.flatten())


@works
@pytest.mark.parametrize("channels", [3, 64])
def test_floats_are_taken_as_they_are_and_copied_only_where_they_must(channels: int) -> None:
    request = replace(CONV, bits=LayerBits(weight=8, activation=16), weight_shape=(1, channels), op="linear")
    (part,) = quantize_weight(torch.ones(request.weight_shape, device=DEVICE), 8)
    layer = CudaBackend().bind(request, part, None, None).layer
    x = torch.randn(1, channels, 1, 7, device=DEVICE)
    last = x.contiguous(memory_format=torch.channels_last)
    for each in (x, last):
        made = prepare(each, layer.tensors, None, 1).x
        assert torch.equal(made[..., :channels], x.permute(0, 2, 3, 1))
        assert bool((made[..., channels:] == 0.0).all())
        assert (made.data_ptr() == each.data_ptr()) == (channels == 64 and each is last)


@pytest.mark.parametrize("ones", [("x_channel",), ("x_pixel",)], ids=["channels last", "channels first"])
@pytest.mark.parametrize(("of_pictures", "dynamic"), [(False, False), (False, True), (True, True)])
def test_it_divides_truly_on_a_gpu(compiled, ones: tuple[str, ...], of_pictures: bool, dynamic: bool) -> None:
    constants = {
        "low": -128,
        "high": 127,
        "of_codes": True,
        "of_pictures": of_pictures,
        "dynamic": dynamic,
        "block_rows": 4,
        "block_channels": 256,
        "block_chunks": 64,
    }
    pointers = {"x": "*fp16", "prepared": "*i8", "scale": "*fp32", "zero": "*i32"}
    pointers |= {"row_scale": "*fp32", "row_zero": "*i32", "ranges": "*fp32"}
    ptx = compiled(activations.prepare, 80, constants, pointers, ones=ones).asm["ptx"]
    assert "div.rn.f32" in ptx
    assert "div.approx" not in ptx
    assert ".ftz" not in ptx
    assert "fma.rn.f32" not in ptx.split("div.rn.f32", 1)[1]
