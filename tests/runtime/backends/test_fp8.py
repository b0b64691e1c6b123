"""Its results beside the reference's: the conformance suite. Here what that does not ask."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mixdq.errors import NoBackendError
from mixdq.quant.qparams import activation_qparams
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.fp8 import Fp8Backend, _Product, _trouble
from mixdq.runtime.backends.reference import ReferenceBackend
from mixdq.runtime.kernel import KernelRequest
from mixdq.runtime.select import AUTO, BACKENDS, select
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange

BACKEND = Fp8Backend()
REQUEST = KernelRequest(
    layer="mid.to_q",
    op="linear",
    bits=LayerBits(weight=8, activation=8, number="float"),
    weight_shape=(40, 24),
    device="cpu",
    dtype=torch.float32,
    output_dtype=torch.float32,
)
DYNAMIC = replace(REQUEST, dynamic=True)

needs_product = pytest.mark.skipif(bool(BACKEND.refusals(REQUEST)), reason="; ".join(BACKEND.refusals(REQUEST)))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_refusals_are_in_words() -> None:
    assert "mps" in BACKEND.refusals(replace(REQUEST, device="mps"))[0]
    whole = replace(REQUEST, bits=LayerBits(weight=8, activation=8))
    assert "E4M3 floats (W8A8 float), and the layer is W8A8" in BACKEND.refusals(whole)[0]
    assert "no convolution" in BACKEND.refusals(replace(REQUEST, op="conv2d", weight_shape=(4, 2, 1, 1)))[0]
    assert "inputs of torch.float64" in BACKEND.refusals(replace(REQUEST, dtype=torch.float64))[0]
    if not torch.cuda.is_available():
        assert "no NVIDIA GPU" in BACKEND.refusals(replace(REQUEST, device="cuda"))[0]


def test_an_old_card_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    _trouble.cache_clear()
    try:
        assert "compute capability 8.9" in BACKEND.refusals(replace(REQUEST, device="cuda"))[0]
    finally:
        _trouble.cache_clear()


@needs_product
def test_a_product_that_comes_out_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # As where bytes of bfloat16 stand for float16's.
    product = torch._scaled_mm
    monkeypatch.setattr(torch, "_scaled_mm", lambda *args, **given: product(*args, **given) / 2.0)
    _trouble.cache_clear()
    try:
        assert "wrongly" in str(_trouble("cpu", torch.float16, by_rows=True))
        assert "wrongly" in BACKEND.refusals(REQUEST)[0]
    finally:
        _trouble.cache_clear()


def test_auto_takes_no_floats_on_a_cpu_and_says_what_does() -> None:
    with pytest.raises(NoBackendError, match=r"W8A8 float.*--backend reference") as error:
        select(REQUEST, AUTO)
    assert "multiplies integers" in error.value.refusals["cpu"][0]
    if not BACKEND.refusals(REQUEST):
        assert "runs when it is named" in error.value.refusals["fp8"][0]
        assert select(REQUEST, "fp8")[0].name == "fp8"


def test_integers_never_meet_it() -> None:
    whole = replace(REQUEST, bits=LayerBits(weight=8, activation=8))
    floats = [backend for backend in BACKENDS if not backend.refusals(REQUEST)]
    assert {backend.name for backend in floats} <= {"fp8", "reference"}
    assert select(whole, "reference")[0].name == "reference"
    with pytest.raises(NoBackendError, match="the layer is W8A8"):
        select(whole, "fp8")


@needs_product
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("static", [True, False])
def test_both_ways_to_scale_give_the_references_numbers(by_rows: bool, dtype: torch.dtype, static: bool) -> None:
    if by_rows and (trouble := _trouble("cpu", dtype, by_rows=True)):
        pytest.skip(trouble)
    request = replace(REQUEST, dtype=dtype, output_dtype=dtype, dynamic=not static)
    (part,) = quantize_weight(random(40, 24), 8, number="float")
    activation = activation_qparams(ActivationRange(min=-2.0, max=2.5, batches=1), 8, "float") if static else None
    bias, x = random(40, seed=1).to(dtype), random(3, 5, 24, seed=2).to(dtype)
    found = _Product(request, part, bias, activation, by_rows)(x)
    wanted = ReferenceBackend().bind(replace(request, output_dtype=torch.float32), part, bias, activation)(x)
    assert (found.dtype, found.shape) == (dtype, wanted.shape)
    # 24 products of at most 3 x 3 scales apart, sums and epilogue in float32, and the output's own rounding.
    magnitude = x.float().abs() @ random(40, 24).abs().T + bias.float().abs()
    bound = magnitude * 1.2 * (40 * 2.0**-24 + torch.finfo(dtype).eps)
    assert bool(((found.float() - wanted).abs() <= bound).all())


@needs_product
def test_codes_come_back_as_they_were_bound() -> None:
    for shape in ((40, 24), (48, 32), (1, 1)):
        (part,) = quantize_weight(random(*shape), 8, number="float")
        kernel = BACKEND.bind(replace(DYNAMIC, weight_shape=shape), part, None, None)
        assert torch.equal(kernel.portable_codes(), part.codes)  # type: ignore[attr-defined]
        assert kernel(random(7, shape[1])).shape == (7, shape[0])


@needs_product
@pytest.mark.parametrize("shape", [(2, 0, 24), (0, 24), (24,), (1, 24)])
def test_any_number_of_rows_gives_as_many(shape: tuple[int, ...]) -> None:
    (part,) = quantize_weight(torch.ones(40, 24), 8, number="float")
    y = BACKEND.bind(DYNAMIC, part, None, None)(torch.ones(shape))
    assert y.shape == (*shape[:-1], 40)
    assert bool((y == 24.0).all())


@needs_product
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("static", [True, False])
def test_a_number_that_is_none_spoils_its_own_row_alone(value: float, static: bool) -> None:
    (part,) = quantize_weight(random(40, 24), 8, number="float")
    activation = activation_qparams(ActivationRange(min=-2.0, max=2.5, batches=1), 8, "float") if static else None
    kernel = BACKEND.bind(replace(REQUEST, dynamic=not static), part, None, activation)
    x = random(2, 3, 24, seed=2)
    expected = kernel(x)
    x[1, 0, 5] = value
    found = kernel(x)
    assert bool(found[1, 0].isnan().all())
    found[1, 0] = expected[1, 0]
    assert torch.equal(found, expected)
