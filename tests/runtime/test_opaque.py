import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mixdq.errors import NonFiniteError
from mixdq.quant.bos import BosRow
from mixdq.runtime import opaque
from mixdq.runtime.kernels import native
from mixdq.runtime.layer import QuantizedLayer

Quantize = Callable[..., QuantizedLayer]

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2, "dilation": 2},
    {"kernel_size": (3, 1), "padding": (0, 1), "groups": 3},
    {"kernel_size": (4, 3), "padding": "same"},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
]


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and native.trouble():
        pytest.skip(str(native.trouble()))
    return str(request.param)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def whole(model: nn.Module) -> Any:
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def text(bos: BosRow, batch: int = 2) -> Tensor:
    x = torch.randn(batch, 5, len(bos.input))
    x[:, 0] = bos.input
    return x


def bos_row(features: int, out: int) -> BosRow:
    return BosRow(input=torch.randn(features) * 50.0, output=torch.randn(out))


class Calls(torch.overrides.TorchFunctionMode):
    """Keeps the last call of one of our operators."""

    last: tuple[Any, tuple[Any, ...]]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if str(func).startswith("mixdq."):
            self.last = func, args
        return func(*args, **(kwargs or {}))


def check_operator(layer: QuantizedLayer, x: Tensor) -> None:
    """Torch's own checks of schema, shape, strides and dtype; and the same numbers as without the operator."""
    with Calls() as calls:
        y = layer.traced(x)
    assert torch.equal(y, layer.run(x))
    operator, arguments = calls.last
    overload = getattr(operator, "default", operator)
    torch.library.opcheck(overload, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("geometry", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 9, 7), (6, 9, 7), (0, 6, 9, 7)], ids=str)
@pytest.mark.parametrize("bits", ["W4A8", "W4A16"])
def test_a_convolution_says_its_output_before_it_runs(
    quantized: Quantize, backend: str, geometry: dict[str, Any], shape: tuple[int, ...], bits: str
) -> None:
    if not shape[0] and (geometry.get("groups") or "padding_mode" in geometry):
        pytest.skip("torch has no such convolution of nothing")
    layer = quantized(nn.Conv2d(6, 9, **geometry), bits, backend=backend)
    check_operator(layer, torch.randn(shape))


@pytest.mark.parametrize("shape", [(2, 5, 9), (9,), (0, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_linear_layer_says_its_output_before_it_runs(
    quantized: Quantize, backend: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    check_operator(quantized(nn.Linear(9, 5), "W4A8", splits=(4, 5), backend=backend), torch.randn(shape).to(dtype))


def test_a_bos_layer_says_its_output_before_it_runs(quantized: Quantize, backend: str) -> None:
    bos = bos_row(9, 5)
    layer = quantized(nn.Linear(9, 5), "W4A8", bos=bos, backend=backend)
    for x in (text(bos), text(bos)[0], text(bos)[:, :1], bos.input):
        check_operator(layer, x)


@pytest.mark.parametrize("dynamic", [False, True])
def test_layers_never_called_compile_whole_for_every_batch_and_size(
    quantized: Quantize, backend: str, dynamic: bool
) -> None:
    model = nn.Sequential(
        quantized(nn.Conv2d(6, 9, 3, padding=1), "W4A8", splits=(4, 2), dynamic=dynamic, backend=backend),
        nn.SiLU(),
        quantized(nn.Conv2d(9, 4, 3, stride=2, padding=1), "W8A8", dynamic=dynamic, backend=backend),
    )
    plain, compiled = copy.deepcopy(model), whole(model)
    for shape in ((1, 6, 8, 8), (3, 6, 8, 8), (2, 6, 12, 10), (1, 6, 8, 8)):
        x = torch.randn(shape)
        assert torch.equal(compiled(x), plain(x))


def test_layers_of_one_shape_share_compiled_code(quantized: Quantize, backend: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    blocks = [nn.Sequential(quantized(nn.Linear(9, 9), "W4A8", backend=backend), nn.SiLU()) for _ in range(12)]
    x = torch.randn(3, 9)
    for block in blocks:
        expected = block(x)
        block.compile(backend=counter, fullgraph=True)
        assert torch.equal(block(x), expected)
    assert counter.frame_count == 1


CHANGES: dict[str, Callable[[QuantizedLayer], object]] = {
    "another backend": lambda layer: layer.use_backend("reference"),
    "a cast and back": lambda layer: layer.half().float(),
    "a move": lambda layer: layer.to("cpu"),
    "other codes": lambda layer: layer.put("weight", torch.zeros_like(layer.state_dict()["weight"])),
    "a loaded state": lambda layer: layer.load_state_dict(
        {name: tensor * 2 if name == "weight_scale" else tensor for name, tensor in layer.state_dict().items()}
    ),
    "an assigned state": lambda layer: layer.load_state_dict(
        {name: tensor.clone() * (2 if name == "bias" else 1) for name, tensor in layer.state_dict().items()},
        assign=True,
    ),
    "another border": lambda layer: setattr(layer, "padding_mode", "circular"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_layer_after_compiling_is_heard(quantized: Quantize, backend: str, change: str) -> None:
    layer = quantized(nn.Conv2d(6, 9, 3, padding=1), "W4A8", backend=backend)
    x, compiled = torch.randn(2, 6, 8, 8), whole(layer)
    compiled(x)
    CHANGES[change](layer)
    assert torch.equal(compiled(x), copy.deepcopy(layer)(x))


def test_compiled_code_raises_what_eager_code_raises(quantized: Quantize, backend: str) -> None:
    bos = bos_row(9, 5)
    layer = quantized(nn.Linear(9, 5), "W4A8", bos=bos, backend=backend)
    compiled, good = whole(layer), text(bos)
    compiled(good)
    broken, infinite = good.clone(), good.clone()
    broken[0, 0, 3] = torch.nan
    infinite[1, 2, 3] = torch.inf
    for x in (broken, infinite):
        with pytest.raises(NonFiniteError) as eager:
            layer(x)
        with pytest.raises(NonFiniteError) as raised:
            compiled(x)
        assert str(raised.value) == str(eager.value)
    with pytest.raises(ValueError, match=r"layer: expected an input \[\.\.\., 9\], found \[2, 8\]"):
        compiled(torch.randn(2, 8))
    assert torch.equal(compiled(good), layer(good))


def test_a_copy_runs_by_its_own_tensors(quantized: Quantize, backend: str) -> None:
    layer = quantized(nn.Linear(9, 5), "W4A8", backend=backend)
    twin = copy.deepcopy(layer)
    x, y = torch.randn(2, 9), layer(torch.ones(2, 9))
    layer.put("weight_scale", layer.weight_scale * 2)
    assert torch.equal(whole(twin)(x), twin(x))
    assert not torch.equal(whole(layer)(x), twin(x))
    assert torch.equal(twin(torch.ones(2, 9)), y)


def test_a_handle_keeps_no_layer_alive(quantized: Quantize) -> None:
    gc.collect()
    before = len(opaque._LAYERS)
    layer = quantized(nn.Linear(9, 5), "W4A8")
    assert len(opaque._LAYERS) == before + 1
    del layer
    gc.collect()
    assert len(opaque._LAYERS) == before


def test_a_program_that_outlives_its_layer_says_so(quantized: Quantize) -> None:
    layer = quantized(nn.Linear(9, 5), "W4A8")
    handle = layer.handle
    del layer
    gc.collect()
    with pytest.raises(RuntimeError, match=r"not in this process.*save_pretrained"):
        opaque.linear(torch.ones(2, 9), handle, 5)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("geometry", [CONVOLUTIONS[1], CONVOLUTIONS[2], CONVOLUTIONS[5]], ids=str)
def test_an_input_has_the_gradient_of_the_float_layer(
    geometry: dict[str, Any], compiled: bool, quantized: Quantize, backend: str
) -> None:
    layer = quantized(nn.Conv2d(6, 9, **geometry), "W4A8", backend=backend)
    check_gradient(layer, torch.randn(2, 6, 9, 7), compiled=compiled)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_an_input_of_a_linear_has_it_too_but_for_a_stored_first_token(
    compiled: bool, quantized: Quantize, backend: str
) -> None:
    check_gradient(quantized(nn.Linear(8, 5), "W4A8", backend=backend), torch.randn(2, 7, 8), compiled=compiled)
    bos = bos_row(8, 5)
    layer = quantized(nn.Linear(8, 5), "W4A8", bos=bos, backend=backend)
    for x in (text(bos), text(bos)[0], text(bos)[0, 0]):
        x = x.requires_grad_()
        (found,) = torch.autograd.grad(layer(x).square().sum(), x)
        tokens = found if x.dim() > 1 else found[None]
        assert not tokens[..., 0, :].any()
        assert bool(tokens[..., 1:, :].any(-1).all())


def check_gradient(layer: QuantizedLayer, x: Tensor, *, compiled: bool) -> None:
    """Against autograd through the float layer, for a loss that sees the quantized output."""
    called = whole(layer) if compiled else layer
    x = x.requires_grad_()
    y = called(x)
    assert torch.equal(y, layer.run(x.detach()))
    (found,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(layer.to_float(torch.float32)(x), x, 2.0 * y.detach())
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch captures nothing beside the CPU")
def test_torch_captures_no_operator_for_it_would_keep_one_layer() -> None:
    for name in ("linear", "conv2d", "folded_linear", "folded_conv2d", "input_gradient"):
        assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.mixdq, name).default.tags


def test_without_an_input_that_asks_there_is_no_gradient_and_no_operator(quantized: Quantize, backend: str) -> None:
    layer = quantized(nn.Linear(8, 5), "W4A8", backend=backend)
    with Calls() as calls:
        assert not layer(torch.randn(3, 8)).requires_grad
        with torch.no_grad():
            layer(torch.randn(3, 8, requires_grad=True))
    assert not hasattr(calls, "last")
