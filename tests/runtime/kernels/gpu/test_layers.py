"""Layers of the Triton kernels against the reference backend, bit for bit; interpreted, or on a GPU."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.backends.reference import ReferenceBackend
from mixdq.runtime.before import NOTHING
from mixdq.runtime.kernel import KernelRequest
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.kernels.gpu import tuning as tuning_module
from mixdq.runtime.kernels.gpu.configurations import Card, Configuration
from mixdq.runtime.kernels.gpu.tuning import configuration, tuning
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import QParams, QuantSpec

pytestmark = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

DEVICE = "cpu" if available.interpreted() else "cuda"
CUDA, REFERENCE = CudaBackend(), ReferenceBackend()
REQUEST = KernelRequest(
    layer="mid.to_q",
    op="linear",
    bits=LayerBits(weight=8, activation=8),
    weight_shape=(40, 24),
    device=DEVICE,
    dtype=torch.float32,
    output_dtype=torch.float32,
)
CONV = replace(REQUEST, op="conv2d", weight_shape=(20, 6, 3, 3), padding=(1, 1))
SMALL = Configuration(rows=16, columns=64, split=1, warps=4, stages=2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def bound(request: KernelRequest, backend: CudaBackend | ReferenceBackend, symmetric: bool = True):
    weight, bias = normal(*request.weight_shape, seed=1), normal(request.weight_shape[0], seed=2)
    (part,) = quantize_weight(weight, request.bits.weight, symmetric=symmetric)
    activation = QParams(
        scale=torch.tensor(0.03, device=DEVICE),
        zero_point=torch.tensor(-7, dtype=torch.int32, device=DEVICE),
        spec=QuantSpec(num_bits=8, symmetric=False),
    )
    request = replace(request, symmetric=symmetric)
    assert backend.refusals(request) == []
    has_none = request.dynamic or request.bits.activation == FLOAT_BITS
    return backend.bind(request, part, bias, None if has_none else activation)


def assert_same(request: KernelRequest, x: Tensor, symmetric: bool = True, forced: Configuration | None = None) -> None:
    kernel = bound(request, CUDA, symmetric)
    kernel.layer.forced = forced
    y = kernel(x)
    assert y.dtype == request.output_dtype
    assert torch.equal(y, bound(request, REFERENCE, symmetric)(x))


@pytest.mark.parametrize(
    ("rows", "split", "num_bits"), [(1, 4, 8), (15, 2, 4), (16, 3, 8), (16, 2, 2), (17, 1, 8), (33, 4, 8)]
)
def test_sums_in_parts_are_the_whole_ones(rows: int, split: int, num_bits: int) -> None:
    # 2 or 4 steps, a column tile that is not full.
    request = replace(REQUEST, weight_shape=(70, 512), bits=LayerBits(weight=num_bits, activation=8))
    assert_same(request, normal(rows, 512), forced=replace(SMALL, split=split))


def test_a_configuration_that_a_card_refuses_is_left_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import OutOfResources

    monkeypatch.setattr(tuning_module, "_REFUSED", set())
    kernel, x = bound(REQUEST, CUDA), normal(7, 24)
    wanted = kernel(x)
    launch, tried = kernel.layer._launch, []

    def refusing(chosen: Configuration, *arguments) -> None:
        tried.append(chosen)
        if len(tried) == 1:
            raise OutOfResources(300_000, 232_448, "shared memory")
        launch(chosen, *arguments)

    monkeypatch.setattr(kernel.layer, "_launch", refusing)
    assert torch.equal(kernel(x), wanted)
    assert torch.equal(kernel(x), wanted)
    first, *others = tried
    assert len(others) == 2
    assert first not in others
    tuning_module.configuration.cache_clear()


@pytest.mark.parametrize("num_bits", [2, 3, 4, 5, 6, 7, 8])
def test_every_width_of_codes(num_bits: int) -> None:
    request = replace(REQUEST, bits=LayerBits(weight=num_bits, activation=8), weight_shape=(9, 133))
    assert_same(request, normal(7, 133), symmetric=num_bits == 8 or num_bits % 2 == 0)


def test_results_are_those_of_cards_that_multiply_from_registers() -> None:
    kernel, x = bound(REQUEST, CUDA), normal(7, 24)
    wanted = kernel(x)
    kernel.layer._card = Card(capability=(8, 9), multiprocessors=8)
    assert torch.equal(kernel(x), wanted)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype(dtype: torch.dtype, dynamic: bool) -> None:
    request = replace(REQUEST, dtype=dtype, output_dtype=dtype, dynamic=dynamic)
    assert_same(request, normal(5, 24).to(dtype))


@pytest.mark.parametrize("shape", [(24,), (0, 24), (2, 0, 24), (2, 3, 24), (2, 2, 3, 24)])
def test_inputs_of_any_number_of_axes(shape: tuple[int, ...]) -> None:
    assert_same(REQUEST, normal(*shape))


def test_inputs_that_lie_anywhere() -> None:
    for x in (normal(3, 9, 24)[:, 1:], normal(3, 9, 50)[..., 3:51:2], normal(24, 9).T, normal(9, 1).expand(9, 24)):
        assert_same(REQUEST, x)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("order", ["channels first", "channels last", "cropped", "one picture"])
def test_convolutions_of_pictures_in_any_order(order: str, dynamic: bool) -> None:
    x = normal(2, 6, 7, 6)
    if order == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    x = {"cropped": x[:, :, 1:-1, 2:-1], "one picture": x[0]}.get(order, x)
    request = replace(CONV, dynamic=dynamic)
    assert_same(request, x)
    assert bound(request, CUDA)(normal(2, 6, 7, 6)).is_contiguous(memory_format=torch.channels_last)


GEOMETRIES = [
    {"weight_shape": (6, 3, 3, 2), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2), "groups": 2},
    {"weight_shape": (5, 6, 1, 1), "padding": (0, 0)},
    {"weight_shape": (5, 6, 1, 1), "padding": (1, 0), "stride": (2, 2)},
    {"weight_shape": (6, 1, 3, 3), "groups": 6},
    {"weight_shape": (6, 1, 1, 1), "padding": (0, 0), "groups": 6},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_windows_of_any_geometry(geometry) -> None:
    bits = LayerBits(weight=4, activation=8)
    assert_same(replace(CONV, bits=bits, **geometry), normal(2, 6, 5, 6), forced=SMALL)


def test_a_sum_of_a_convolution_in_parts() -> None:
    assert_same(replace(CONV, groups=2, weight_shape=(6, 3, 3, 3)), normal(1, 6, 4, 4), forced=replace(SMALL, split=4))


def test_no_picture_gives_none() -> None:
    assert bound(CONV, CUDA)(normal(0, 6, 4, 4)).shape == (0, 20, 4, 4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dynamic", [False, True])
def test_what_no_integer_stands_for_spoils_its_row_or_picture_alone(value: float, dynamic: bool) -> None:
    x = normal(3, 24)
    x[1, 7] = value
    y = bound(replace(REQUEST, dynamic=dynamic), CUDA)(x)
    assert y.isnan().all(dim=1).tolist() == [False, True, False]
    assert y.isnan().any(dim=1).tolist() == [False, True, False]
    pictures = normal(3, 6, 5, 5)
    pictures[1, 2, 0, 4] = value
    for geometry in ({}, {"weight_shape": (5, 6, 1, 1), "padding": (0, 0)}):
        y = bound(replace(CONV, dynamic=dynamic, **geometry), CUDA)(pictures)
        assert y.isnan().flatten(1).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_what_is_added_is_added_at_the_end(op: str) -> None:
    request, x = (REQUEST, normal(5, 24)) if op == "linear" else (CONV, normal(2, 6, 4, 4))
    kernel = bound(request, CUDA)
    y = kernel(x)
    added = torch.randn_like(y)
    assert torch.equal(kernel.layer.linear(x, added) if op == "linear" else kernel.layer.conv2d(x, added), added + y)


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_a_residual_of_any_strides_is_what_torch_adds(op: str, dtype: torch.dtype, split: int) -> None:
    """The product is rounded before, and the sum after, as in two passes."""
    request = replace(REQUEST if op == "linear" else CONV, dtype=dtype, output_dtype=dtype)
    request = replace(request, weight_shape=(20, 128) if op == "linear" else (20, 6, 3, 3))
    x = (normal(2, 5, 128) if op == "linear" else normal(2, 6, 4, 3)).to(dtype)
    kernel = bound(request, CUDA)
    kernel.layer.forced = replace(SMALL, split=split)
    y = kernel(x)
    added = torch.randn(y.shape, device=DEVICE).to(dtype)
    others = [added, torch.randn(2, 5, 40).to(added)[..., ::2], torch.randn(20, 5, 2).to(added).permute(2, 1, 0)]
    if op == "conv2d":
        order = torch.channels_last
        others = [added, added.contiguous(memory_format=order), added[:, :, :1, :1], added[:1], added[:, :, :, ::2]]
        others[-1] = torch.cat([added, added], dim=3).contiguous(memory_format=order)[:, :, :, 1:4]
    for each in others:
        assert torch.equal(kernel.folded(x, NOTHING, each), y + each)


@pytest.mark.parametrize(
    ("dtype", "num_bits", "symmetric"),
    [(torch.float32, 3, False), (torch.bfloat16, 4, True), (torch.float16, 8, False), (torch.float16, 2, True)],
)
@pytest.mark.parametrize("op", ["linear", "conv2d"])
def test_weight_only_products_are_those_of_float64(dtype, num_bits: int, symmetric: bool, op: str) -> None:
    request = replace(REQUEST, weight_shape=(40, 64)) if op == "linear" else CONV
    request = replace(request, bits=LayerBits(weight=num_bits, activation=16), dtype=dtype, output_dtype=torch.float32)
    x = (normal(5, 64) if op == "linear" else normal(2, 6, 5, 6)).to(dtype)
    kernel = bound(request, CUDA, symmetric)
    exact = replace(request, dtype=torch.float64, output_dtype=torch.float64)
    wanted = bound(exact, REFERENCE, symmetric)(x.double())
    magnitude = bound(exact, REFERENCE, symmetric)(x.double().abs()).abs() + 10.0 * 64
    # A float32 sum of n products is off by at most n roundings of the sum of their magnitudes.
    assert bool(((kernel(x).double() - wanted).abs() <= magnitude * 80 * 2.0**-24).all())


def test_tuning_changes_no_result_and_measures_each_size_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel, x = bound(REQUEST, CUDA), normal(5, 24)
    wanted = kernel(x)
    calls: list[None] = []

    def timer(call) -> float:
        calls.append(call())
        return float(-len(calls))

    with tuning(timer) as tuner:
        assert torch.equal(kernel(x), wanted)
        measured = len(calls)
        assert torch.equal(kernel(x), wanted)
    assert len(calls) == measured > 1
    assert torch.equal(kernel(x), wanted)
    # The last one measured, the fastest by this clock, is the one that runs from then on.
    assert all(configuration(sizes, card) == chosen for (card, sizes), chosen in tuner.found.items())
    monkeypatch.undo()
    tuning_module._known.cache_clear()
    configuration.cache_clear()
