"""Its results: the conformance suites, on the CPU too. Here what they do not ask."""

from dataclasses import replace

import pytest
import torch

from mixdq.errors import NoBackendError
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.int_mm import IntMmBackend
from mixdq.runtime.kernel import MAX_DEPTH, KernelRequest
from mixdq.runtime.select import AUTO, BACKENDS, select
from mixdq.types.plan import LayerBits

REQUEST = KernelRequest(
    layer="mid.to_q",
    op="linear",
    bits=LayerBits(weight=8, activation=8),
    weight_shape=(40, 24),
    device="cpu",
    dtype=torch.float32,
    output_dtype=torch.float32,
)


def test_refusals_are_in_words() -> None:
    backend = IntMmBackend()
    assert backend.refusals(REQUEST) == []
    assert "mps" in backend.refusals(replace(REQUEST, device="mps"))[0]
    assert "zero points" in backend.refusals(replace(REQUEST, symmetric=False))[0]
    assert "2 groups" in backend.refusals(replace(REQUEST, op="conv2d", weight_shape=(4, 2, 1, 1), groups=2))[0]
    assert "overflow" in backend.refusals(replace(REQUEST, weight_shape=(1, MAX_DEPTH + 1)))[0]
    assert "floating point" in backend.refusals(replace(REQUEST, bits=LayerBits(weight=16, activation=8)))[0]
    if not torch.cuda.is_available():
        assert "no NVIDIA GPU" in backend.refusals(replace(REQUEST, device="cuda"))[0]


@pytest.mark.parametrize(("capability", "takes"), [((7, 0), False), ((7, 5), True), ((12, 0), True)])
def test_an_old_card_is_refused(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], takes: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    reasons = IntMmBackend().refusals(replace(REQUEST, device="cuda"))
    assert reasons == ([] if takes else ["int8 products need compute capability 7.5"])


def test_it_runs_only_when_named() -> None:
    slow = tuple(backend for backend in BACKENDS if backend.name in ("int_mm", "reference"))
    with pytest.raises(NoBackendError):
        select(REQUEST, AUTO, slow)
    assert select(REQUEST, "int_mm")[0].name == "int_mm"


def test_no_rows_give_none() -> None:
    (part,) = quantize_weight(torch.ones(40, 24), 8)
    kernel = IntMmBackend().bind(replace(REQUEST, dynamic=True), part, None, None)
    assert kernel(torch.zeros(2, 0, 24)).shape == (2, 0, 40)
