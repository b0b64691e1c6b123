from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from mixdq.errors import NonFiniteError
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cpu import CpuBackend
from mixdq.runtime.backends.reference import ReferenceBackend
from mixdq.runtime.kernel import Backend, Kernel, KernelRequest
from mixdq.runtime.kernels import native
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import QParams, QuantSpec

pytestmark = pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))

LINEAR = KernelRequest(
    layer="layer",
    op="linear",
    bits=LayerBits(weight=4, activation=8),
    weight_shape=(40, 10),
    symmetric=False,
    device="cpu",
    dtype=torch.float32,
    output_dtype=torch.float32,
)
CONV = replace(LINEAR, op="conv2d", weight_shape=(6, 4, 3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
WEIGHT_ONLY = LayerBits(weight=4, activation=FLOAT_BITS)
REQUESTS = {
    "linear": LINEAR,
    "conv2d": CONV,
    "linear, dynamic": replace(LINEAR, dynamic=True),
    "conv2d, dynamic": replace(CONV, dynamic=True),
    "linear, weight-only": replace(LINEAR, bits=WEIGHT_ONLY),
    "conv2d, weight-only": replace(CONV, bits=WEIGHT_ONLY),
}


def bound(request: KernelRequest, backend: Backend) -> Kernel:
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(request.weight_shape, generator=generator)
    (part,) = quantize_weight(weight, request.bits.weight, symmetric=request.symmetric)
    spec = QuantSpec(num_bits=8, symmetric=False)
    activation = QParams(scale=torch.tensor(0.03), zero_point=torch.tensor(9, dtype=torch.int32), spec=spec)
    known = None if request.dynamic or request.bits.activation == FLOAT_BITS else activation
    return backend.bind(request, part, torch.randn(request.weight_shape[0], generator=generator), known)


def memories(x: torch.Tensor) -> list[torch.Tensor]:
    """The same numbers in every order of memory that layers meet, some of them parts of more."""
    wider = functional.pad(x, (1, 2))
    orders = [x.contiguous(), wider[..., 1:-2], x.mT.contiguous().mT, torch.cat([x, x])[: len(x)]]
    if x.dim() == 4:
        more = torch.cat([x, x], dim=1)
        orders += [x.contiguous(memory_format=torch.channels_last)]
        orders += [more.contiguous(memory_format=torch.channels_last)[:, : x.shape[1]], more[:, : x.shape[1]]]
    return orders


@pytest.mark.parametrize("name", REQUESTS)
def test_a_layer_is_the_same_of_an_input_in_any_memory(name: str) -> None:
    request = REQUESTS[name]
    shape = (4, 5, 10) if request.op == "linear" else (3, 8, 9, 11)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    layer, expected = bound(request, CpuBackend()), bound(request, ReferenceBackend())(x)
    for memory in memories(x):
        found = layer(memory)
        if request.bits.activation == FLOAT_BITS:
            torch.testing.assert_close(found, expected)
        else:
            assert torch.equal(found, expected)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_single_text_or_picture_and_none_keep_their_axes(name: str) -> None:
    request = REQUESTS[name]
    layer = bound(request, CpuBackend())
    shape = (5, 10) if request.op == "linear" else (8, 9, 11)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(layer(x), layer(x[None])[0])
    none = layer(x[None][:0])
    assert none.shape == (0, *layer(x).shape)
    if request.op == "linear":
        assert torch.equal(layer(x[0]), layer(x)[0])
        assert layer(x[:0]).shape == (0, 40)


def test_weight_only_borders_are_zeros_and_spare_channels_weigh_nothing() -> None:
    # 3 channels fill up to 4, the last tap of the last row lies at the end of what is brought near.
    request = replace(CONV, bits=WEIGHT_ONLY, weight_shape=(5, 3, 3, 3), groups=1, padding=(2, 1), dilation=(1, 1))
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    layer, reference = bound(request, CpuBackend()), bound(request, ReferenceBackend())
    torch.testing.assert_close(layer(x), reference(x))
    bare = replace(request, padding=(0, 0))
    padded = functional.pad(x, (1, 1, 2, 2))
    assert torch.equal(bound(bare, CpuBackend())(padded), layer(x))


@pytest.mark.parametrize("name", [name for name in REQUESTS if "weight-only" not in name])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_no_integer_stands_for_is_refused_wherever_it_lies(name: str, value: float) -> None:
    request = REQUESTS[name]
    layer = bound(request, CpuBackend())
    shape = (4, 5, 10) if request.op == "linear" else (2, 8, 9, 11)
    for at in (0, torch.Size(shape).numel() // 2, -1):
        x = torch.randn(shape)
        x.view(-1)[at] = value
        with pytest.raises(NonFiniteError, match="layer"):
            layer(x)
