"""Inputs scaled at run time, on every backend: bit for bit what the reference gives, and near the float64 oracle.

The oracle is numpy in float64, written from the definition: each row's grid from its least and greatest number, zero
included; then the product of what the codes stand for.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mixdq.errors import NonFiniteError
from mixdq.quant.weights import dequantize_weight, quantize_weight
from mixdq.runtime.backends.reference import ReferenceBackend
from mixdq.runtime.kernel import Backend, KernelRequest
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.select import BACKENDS
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import QTensor

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Triton's interpreter is slow.
EXAMPLES = 8 if available.interpreted() else 60

pytestmark = [
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name),
]

many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@dataclass(frozen=True)
class Case:
    request: KernelRequest
    weight: QTensor
    bias: Tensor | None
    x: Tensor

    def run(self, backend: Backend, x: Tensor) -> Tensor:
        return backend.bind(self.request, self.weight, self.bias, None)(x).cpu()


def test_every_backend_gives_what_the_reference_gives_near_the_oracle(backend: Backend, device: str) -> None:
    @many
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        case = drawn(data, device)
        if backend.refusals(case.request):
            reject()
        y = case.run(backend, case.x)
        assert y.dtype == case.request.output_dtype
        assert torch.equal(y, case.run(ReferenceBackend(), case.x))
        assert_near(case, y, backend.tolerance)
        # A row knows nothing of the others.
        last = case.x.shape[0] - 1
        assert torch.equal(case.run(backend, case.x[last:]), y[last:])

    if backend.refusals(plain(device)):
        pytest.skip(f"{backend.name}: {'; '.join(backend.refusals(plain(device)))}")
    run()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_rows_of_zeros_of_one_number_and_of_the_greatest_there_are(
    backend: Backend, device: str, op: str, dtype: torch.dtype
) -> None:
    request = replace(plain(device), op=op, dtype=dtype, weight_shape=(1, 4) if op == "linear" else (1, 4, 1, 1))
    if backend.refusals(request):
        pytest.skip(f"{backend.name}: {'; '.join(backend.refusals(request))}")
    (weight,) = quantize_weight(torch.ones(request.weight_shape, device=device), 8)
    largest, least = torch.finfo(dtype).max / 4, torch.finfo(dtype).smallest_normal
    x = torch.tensor([[0.0] * 4, [2.5] * 4, [-largest] * 4, [0.0, 0.0, 0.0, least], [-least] * 4])
    x = x.to(device, dtype).reshape(5, *request.weight_shape[1:])
    y = backend.bind(request, weight, None, None)(x).cpu().double().flatten()
    # Where all of a row is one number, that number and zero are the ends of its grid: exact but for float32's rounding.
    wanted = x.cpu().double().reshape(5, 4).sum(1)
    assert float(y[0]) == 0.0
    assert bool(((y - wanted).abs()[:3] <= 8 * 2.0**-24 * wanted.abs()[:3]).all())
    # Scales do not go below the least normal float32; no more than a step is lost.
    assert bool(((y - wanted).abs()[3:] <= 4 * max(least / 255, torch.finfo(torch.float32).tiny)).all())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_what_no_integer_stands_for_is_named_with_its_layer(
    backend: Backend, device: str, op: str, value: float
) -> None:
    request = replace(plain(device), op=op, weight_shape=(3, 4) if op == "linear" else (3, 4, 1, 1))
    if backend.refusals(request):
        pytest.skip(f"{backend.name}: {'; '.join(backend.refusals(request))}")
    (weight,) = quantize_weight(torch.ones(request.weight_shape, device=device), 8)
    x = torch.ones(3, *request.weight_shape[1:], device=device)
    x[1, 2] = value
    kernel = backend.bind(request, weight, None, None)
    if backend.name in ("cuda", "int_mm"):
        # Nothing waits for a GPU to say so.
        assert kernel(x).isnan().flatten(1).all(dim=1).tolist() == [False, True, False]
        return
    with pytest.raises(NonFiniteError, match=r"mid\.proj") as error:
        kernel(x)
    assert error.value.where == "mid.proj"


def plain(device: str) -> KernelRequest:
    return KernelRequest(
        layer="mid.proj",
        op="linear",
        bits=LayerBits(weight=8, activation=8),
        weight_shape=(3, 4),
        dynamic=True,
        device=device,
        dtype=torch.float32,
        output_dtype=torch.float32,
    )


def drawn(data: st.DataObject, device: str) -> Case:
    """A layer of any widths, and an input whose rows are of very different sizes, in any memory order."""
    linear, symmetric = data.draw(st.booleans(), label="linear"), data.draw(st.booleans(), label="symmetric")
    groups = 1 if linear else data.draw(st.sampled_from([1, 1, 2, 3]), label="groups")
    in_group, out_group = data.draw(st.integers(1, 40), label="in"), data.draw(st.integers(1, 40), label="out")
    batch = data.draw(st.integers(1, 8), label="batch")
    window = () if linear else data.draw(st.sampled_from([(1, 1), (3, 3), (3, 1), (2, 4)]), label="window")
    pairs = {
        name: data.draw(st.tuples(st.integers(low, 2), st.integers(low, 2)), label=name)
        for name, low in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    dtype = data.draw(st.sampled_from(DTYPES), label="dtype")
    request = replace(
        plain(device),
        op="linear" if linear else "conv2d",
        bits=LayerBits(weight=data.draw(st.integers(2, 8)), activation=data.draw(st.integers(2, 8))),
        weight_shape=(groups * out_group, in_group, *window),
        groups=groups,
        symmetric=symmetric,
        dtype=dtype,
        output_dtype=data.draw(st.sampled_from([dtype, torch.float32]), label="output dtype"),
        **pairs,
    )
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32), label="seed"))
    tail = (
        () if linear else tuple(pairs["dilation"][i] * (window[i] - 1) + data.draw(st.integers(1, 9)) for i in (0, 1))
    )
    rows = (batch, data.draw(st.integers(1, 20))) if linear else (batch,)
    x = torch.randn(*rows, groups * in_group, *tail, generator=generator) + 0.5
    x = x * 10.0 ** torch.randint(-3, 3, (*rows, *[1] * (x.dim() - len(rows))), generator=generator)
    (weight,) = quantize_weight(
        torch.randn(request.weight_shape, generator=generator).to(device), request.bits.weight, symmetric=symmetric
    )
    bias = torch.randn(groups * out_group, generator=generator) if data.draw(st.booleans(), label="bias") else None
    return Case(request, weight, None if bias is None else bias.to(device), strided(data, x.to(device, dtype)))


def strided(data: st.DataObject, x: Tensor) -> Tensor:
    how = data.draw(st.sampled_from(["contiguous", "slice", "transposed", "channels_last"]), label="memory")
    if how == "slice":
        wide = torch.full((*x.shape[:-1], x.shape[-1] + 3), 7e3, device=x.device, dtype=x.dtype)
        wide[..., 2:-1] = x
        return wide[..., 2:-1]
    if how == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x


def fake_rows(x: Tensor, num_bits: int, axes: int) -> Tensor:
    """What the codes of each row stand for, in float64."""
    low, steps = -(2 ** (num_bits - 1)), 2**num_bits - 1
    real = x.cpu().double().numpy()
    rows = real.reshape(int(np.prod(real.shape[:-axes])), -1)
    least, greatest = np.minimum(rows.min(1, keepdims=True), 0.0), np.maximum(rows.max(1, keepdims=True), 0.0)
    width = greatest - least
    scale = np.where(width == 0.0, 1.0, width / steps).astype(np.float32)
    zero_point = np.clip(low - np.rint(least / scale.astype(np.float64)), low, low + steps)
    # The quotient is a float32's.
    codes = np.clip(np.rint(rows.astype(np.float32) / scale) + zero_point, low, low + steps)
    return torch.from_numpy(((codes - zero_point) * scale).reshape(real.shape))


def assert_near(case: Case, y: Tensor, tolerance: float) -> None:
    request, weight = case.request, dequantize_weight((case.weight,)).cpu().double()
    fake = fake_rows(case.x, request.bits.activation, 1 if request.op == "linear" else 3)
    bias = torch.zeros(len(weight), dtype=torch.float64) if case.bias is None else case.bias.cpu().double()

    def product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if request.op == "linear":
            return functional.linear(x, weight, bias)
        return functional.conv2d(x, weight, bias, request.stride, request.padding, request.dilation, request.groups)

    # The dequantized weight is a float32, and the output is rounded to its type; float16 has an end.
    magnitude = product(fake.abs(), weight.abs(), bias.abs())
    wanted, limit = product(fake, weight, bias), torch.finfo(y.dtype).max
    kept = magnitude < limit / 2
    bound = (tolerance + 2 * 2.0**-24 + torch.finfo(y.dtype).eps) * magnitude + torch.finfo(y.dtype).smallest_normal
    assert bool(((y.double() - wanted).abs() <= bound)[kept].all())
