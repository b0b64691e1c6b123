"""Codes of an activation against `mixdq.quant`, bit for bit; interpreted, or on a GPU."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton")

from mixdq.quant.affine import quantize
from mixdq.quant.qparams import row_qparams
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.before import GEGLU, NOTHING, SILU, Before, Kind
from mixdq.runtime.kernel import KernelRequest
from mixdq.runtime.kernels.gpu import available
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


def prepared(
    request: KernelRequest, x: Tensor, activation: QParams | None, before: Before = NOTHING
) -> tuple[Tensor, Tensor, Tensor]:
    """The codes [batch, height, width, channels], borders and all, and scale and zero point of rows or pictures."""
    (part,) = quantize_weight(torch.ones(request.weight_shape, device=DEVICE), 8)
    kernel = CudaBackend().bind(request, part, None, activation)
    window = None if request.op == "linear" else Window(kernel=request.weight_shape[2:], padding=request.padding)
    made = prepare(x, kernel.layer.tensors, window, 1, before)
    return made.x[..., : request.weight_shape[1]], made.row_scale, made.row_zero


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
def test_ranges_found_in_parts_are_those_of_each_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 5, 13, 15, generator=generator) * torch.tensor([1.0, 9.0, 0.1])[:, None, None, None]).to(DEVICE)
    request = replace(CONV, weight_shape=(1, 5, 1, 1), padding=(0, 0), dynamic=True)
    codes, row_scale, row_zero = prepared(request, x, None)
    wanted = row_qparams(x.permute(0, 2, 3, 1), 8, axes=3)
    assert torch.equal(codes, quantize(x.permute(0, 2, 3, 1), wanted))
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


def between(low: Tensor, high: Tensor, off: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of a dtype that what lies from `low` to `high`, and is off by so much, may be rounded to."""
    return tuple((end + sign * off).to(dtype).double() for end, sign in ((low, -1), (high, 1)))  # type: ignore[return-value]


def allowed(before: Before, x: Tensor) -> tuple[Tensor, Tensor]:
    """What float32's roundings allow as the result for `x` [batch, channels, height, width]; each step is rounded."""
    dtype, unit = x.dtype, 2.0**-24
    low = high = x.double()
    if before.weight is not None and before.bias is not None:
        parts = x.double().unflatten(1, (before.groups, -1))
        axes = (2, 3, 4) if before.kind == "group_norm" else (2,)
        mean, size = parts.mean(axes, keepdim=True), parts.abs().mean(axes, keepdim=True)
        rstd = (parts.var(axes, keepdim=True, correction=0) + before.eps).rsqrt()
        weight, bias = (each.double().view(before.groups, -1, 1, 1) for each in (before.weight, before.bias))
        exact = ((parts - mean) * rstd * weight + bias).flatten(1, 2)
        # Sums of less than 2^12 numbers, lane by lane and in pairs; each of three products and sums once.
        off = 32 * unit * ((parts.abs() + size) * rstd * weight.abs() + bias.abs()).flatten(1, 2)
        low, high = between(exact, exact, off, dtype)
    if before.kind == "geglu":
        value, gate = low.chunk(2, dim=1)
        exact = functional.gelu(gate)
        ends = [value * end for end in between(exact, exact, 8 * unit * gate.abs(), dtype)]
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        low, high = between(low, high, unit * torch.maximum(low.abs(), high.abs()), dtype)
    if before.silu:
        # exp is off by some roundings of its argument; the least of silu is flat.
        ends = [functional.silu(end) for end in (low, high)]
        off = 4 * unit * (4 + torch.maximum(low.abs(), high.abs())) * torch.maximum(ends[0].abs(), ends[1].abs())
        low, high = between(torch.minimum(*ends), torch.maximum(*ends), off + unit**2, dtype)
    return low, high


def norm(kind: Kind, dtype: torch.dtype, groups: int = 1, silu: bool = False) -> Before:
    weight, bias = (torch.randn(6, generator=torch.Generator().manual_seed(i)).to(dtype).to(DEVICE) for i in (1, 2))
    return Before(kind, weight, bias, groups, 1e-5, silu)


BEFORES: dict[str, Callable[[torch.dtype], Before]] = {
    "group norm": lambda dtype: norm("group_norm", dtype, groups=3),
    "group norm and SiLU": lambda dtype: norm("group_norm", dtype, groups=2, silu=True),
    "layer norm": lambda dtype: norm("layer_norm", dtype),
    "gate": lambda dtype: GEGLU,
    "SiLU": lambda dtype: SILU,
}


def picture_for(before: Before, dtype: torch.dtype, last: bool) -> Tensor:
    """Channels of several magnitudes and means; a Linear's is of one line."""
    generator = torch.Generator().manual_seed(3)
    height = 1 if before.kind in ("layer_norm", "geglu") else 5
    shape = (2, 12 if before.kind == "geglu" else 6, height, 50)
    x = torch.randn(shape, generator=generator) * 2.0 ** torch.randint(-3, 3, (1, shape[1], 1, 1), generator=generator)
    x = (x + torch.randn(1, shape[1], 1, 1, generator=generator)).to(dtype).to(DEVICE)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def request_for(before: Before, dtype: torch.dtype, **others: object) -> KernelRequest:
    linear = before.kind in ("layer_norm", "geglu")
    request = replace(CONV, weight_shape=(1, 6) if linear else (1, 6, 3, 3), op="linear" if linear else "conv2d")
    return replace(request, padding=(0, 0) if linear else (1, 2), dtype=dtype, output_dtype=dtype, **others)


@works
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("what", list(BEFORES))
def test_what_stands_before_is_float32s_and_rounded_at_each_step(what: str, dtype: torch.dtype) -> None:
    before = BEFORES[what](dtype)
    x = picture_for(before, dtype, last=dtype == torch.bfloat16)
    request = request_for(before, dtype, bits=LayerBits(weight=8, activation=16))
    found, _, _ = prepared(request, x, None, before)
    if request.op == "conv2d":
        assert float(found.abs().sum()) == float(found[:, 1:-1, 2:-2].abs().sum())
        found = found[:, 1:-1, 2:-2]
    low, high = (each.permute(0, 2, 3, 1) for each in allowed(before, x))
    assert bool(((low <= found.double()) & (found.double() <= high)).all())
    if dtype != torch.float32:
        assert float((low == high).float().mean()) > 0.9


@works
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("what", list(BEFORES))
def test_codes_are_those_of_a_pass_after_it(what: str, dynamic: bool) -> None:
    before = BEFORES[what](torch.float16)
    x = picture_for(before, torch.float16, last=dynamic)
    request = request_for(before, torch.float16, dynamic=dynamic)
    floats, _, _ = prepared(replace(request, bits=LayerBits(weight=8, activation=16), dynamic=False), x, None, before)
    if request.op == "conv2d":
        floats = floats[:, 1:-1, 2:-2]
    activation = None if dynamic else params(0.02, -3, 8)
    found = prepared(request, x, activation, before)
    wanted = prepared(request, floats.permute(0, 3, 1, 2), activation)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@works
def test_rounding_to_bfloat16_is_torchs() -> None:
    # Numbers of all magnitudes, infinity and NaN; times 101, halves between two among them. Its gelu is itself.
    x = torch.arange(-(2**15), 2**15, 37).to(torch.int16).view(torch.bfloat16).to(DEVICE)
    # Triton's interpreter misreads the least.
    x = x[~(x.abs() < torch.finfo(torch.bfloat16).tiny)]
    gates = torch.full_like(x, 101.0)
    request = replace(CONV, op="linear", weight_shape=(1, len(x)), bits=LayerBits(weight=8, activation=16))
    request = replace(request, dtype=torch.bfloat16, output_dtype=torch.bfloat16)
    found, _, _ = prepared(request, torch.cat([x, gates]).view(1, -1, 1, 1), None, GEGLU)
    assert torch.equal(found.flatten().isnan(), x.isnan())
    assert torch.equal(found.flatten().nan_to_num(), (x * gates).nan_to_num())
