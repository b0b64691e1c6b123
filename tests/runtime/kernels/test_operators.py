from dataclasses import replace

import pytest
import torch
from torch import nn

from mixdq.errors import NonFiniteError
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cpu import CpuBackend
from mixdq.runtime.kernel import Kernel, KernelRequest
from mixdq.runtime.kernels import native
from mixdq.types.plan import LayerBits
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
CASES = [
    (LINEAR, (3, 5, 10)),
    (LINEAR, (10,)),
    (LINEAR, (0, 10)),
    (replace(LINEAR, output_dtype=torch.bfloat16), (7, 10)),
    (CONV, (2, 8, 9, 11)),
    (CONV, (8, 9, 11)),
    (replace(LINEAR, dynamic=True), (3, 5, 10)),
    (replace(CONV, dynamic=True), (2, 8, 9, 11)),
]


def bound(request: KernelRequest) -> Kernel:
    (part,) = quantize_weight(torch.randn(request.weight_shape), request.bits.weight, symmetric=request.symmetric)
    spec = QuantSpec(num_bits=8, symmetric=False)
    activation = QParams(scale=torch.tensor(0.03), zero_point=torch.tensor(9, dtype=torch.int32), spec=spec)
    known = None if request.dynamic else activation
    return CpuBackend().bind(request, part, torch.randn(request.weight_shape[0]), known)


class Calls(torch.overrides.TorchFunctionMode):
    """Keeps the last call of one of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.last: tuple[object, tuple[object, ...]] | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if str(func).startswith("mixdq."):
            self.last = (func, args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("request_", "shape"), CASES)
def test_torch_finds_schema_and_fake_right(request_: KernelRequest, shape: tuple[int, ...]) -> None:
    kernel = bound(request_)
    with Calls() as calls:
        kernel(torch.randn(shape))
    assert calls.last is not None
    operator, arguments = calls.last
    overload = getattr(operator, "default", operator)
    torch.library.opcheck(overload, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("request_", "shape"), CASES)
def test_compiled_whole_it_gives_the_same(request_: KernelRequest, shape: tuple[int, ...]) -> None:
    kernel, x = bound(request_), torch.randn(shape)

    class Layer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return kernel(x + 1.0).float() * 2.0

    whole = torch.compile(Layer(), backend="aot_eager", fullgraph=True)
    assert torch.equal(whole(x), Layer()(x))


def test_what_no_integer_stands_for_is_refused_in_compiled_code_too() -> None:
    kernel = bound(LINEAR)
    whole = torch.compile(lambda x: kernel(x * 2.0), backend="aot_eager", fullgraph=True)
    with pytest.raises(NonFiniteError, match="layer"):
        whole(torch.full((2, 10), torch.inf))
