from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from mixdq.errors import NoBackendError
from mixdq.quant.bos import BosRow
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.before import NOTHING
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.kernel import MAX_DEPTH, FoldingKernel, HoldingKernel, KernelRequest
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.select import select
from mixdq.types.plan import LayerBits

CUDA = CudaBackend()
DEVICE = "cpu" if available.interpreted() else "cuda"
REQUEST = KernelRequest(
    layer="mid.to_q",
    op="linear",
    bits=LayerBits(weight=8, activation=8),
    weight_shape=(40, 24),
    device=DEVICE,
    dtype=torch.float16,
    output_dtype=torch.float16,
)
works = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))


def test_refusals_are_in_words() -> None:
    elsewhere = "cuda" if DEVICE == "cpu" else "cpu"
    assert f"not on {elsewhere}" in CUDA.refusals(replace(REQUEST, device=elsewhere))[0]
    assert "floating point" in CUDA.refusals(replace(REQUEST, bits=LayerBits(weight=16, activation=8)))[0]
    assert "float64" in CUDA.refusals(replace(REQUEST, dtype=torch.float64))[0]
    assert "zero points" in CUDA.refusals(replace(REQUEST, symmetric=False))[0]
    depthwise = replace(REQUEST, op="conv2d", weight_shape=(65_536, 1, 1, 1), groups=65_536)
    assert "65536 groups (at most 65535)" in CUDA.refusals(depthwise)[0]
    assert "overflow" in CUDA.refusals(replace(REQUEST, weight_shape=(1, MAX_DEPTH + 1)))[0]


def test_a_reason_why_no_kernel_runs_is_the_refusal(monkeypatch) -> None:
    monkeypatch.setattr(available, "trouble", lambda: "Triton cannot be imported: pip install triton")
    with pytest.raises(NoBackendError, match=r"mid\.to_q.*pip install triton"):
        select(REQUEST, "cuda")


@works
def test_what_it_can_it_does_not_refuse() -> None:
    weight_only = LayerBits(weight=8, activation=16)
    for request in (REQUEST, replace(REQUEST, dynamic=True), replace(REQUEST, bits=weight_only, symmetric=False)):
        assert CUDA.refusals(request) == []


@works
def test_what_is_added_from_another_device_is_refused() -> None:
    (part,) = quantize_weight(torch.randn(40, 24, device=DEVICE), 8)
    kernel = CUDA.bind(replace(REQUEST, dynamic=True), part, None, None)
    assert isinstance(kernel, FoldingKernel)
    x = torch.randn(3, 24, device=DEVICE, dtype=torch.float16)
    elsewhere = torch.zeros(3, 40, device="meta", dtype=torch.float16)
    with pytest.raises(NoBackendError, match=r"mid\.to_q: its input is on .*, what is done .* on meta"):
        kernel.folded(x, NOTHING, elsewhere)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Callable[[], object]]]:
    """Every way in which kernels are launched, by the name that an error is to have."""
    from mixdq.runtime.kernels.gpu import tuning

    # What is refused here is not to be refused elsewhere.
    monkeypatch.setattr(tuning, "_REFUSED", set())
    x, text = torch.randn(3, 24, device=DEVICE), torch.randn(1, 3, 24, device=DEVICE)
    added = torch.zeros(3, 40, device=DEVICE)
    request = replace(REQUEST, dynamic=True, dtype=torch.float32, output_dtype=torch.float32)
    (part,) = quantize_weight(torch.randn(40, 24, device=DEVICE), 8)
    kernels = [CUDA.bind(replace(request, layer=f"mid.{name}"), part, None, None) for name in ("to_q", "to_k", "to_v")]
    bos = kernels[0].beside_bos(BosRow(input=text[0, 0], output=added[0]), kernels[1])
    joint = kernels[0].join(kernels[1:], [None] * 3)[0].joint
    yield {
        r"mid\.to_q: ": lambda: kernels[0](x),
        r"mid\.to_k: ": lambda: kernels[1].add(x, added, torch.float32),
        r"mid\.to_v: ": lambda: kernels[2].folded(x, NOTHING, added),
        r"mid\.to_q: cuda": lambda: bos(text),
        r"mid\.to_q and 2 more layers of the same input: ": lambda: joint(x, NOTHING),
    }
    tuning.configuration.cache_clear()


def failing(error: BaseException) -> Callable[..., None]:
    def launch(*args: object) -> None:
        raise error

    return launch


@works
@pytest.mark.parametrize("kind", ["resources", "compiler", "driver"])
def test_a_kernel_that_does_not_start_is_named_by_its_layer(monkeypatch, calls, kind: str) -> None:
    from triton import OutOfResources

    from mixdq.runtime.kernels.gpu.layers import GpuLayer

    error = {
        "resources": OutOfResources(300_000, 232_448, "shared memory"),
        "compiler": RuntimeError("PassManager::run failed"),
        "driver": RuntimeError("Triton Error [CUDA]: invalid argument"),
    }[kind]
    monkeypatch.setattr(GpuLayer, "_launch", failing(error))
    for name, call in calls.items():
        with pytest.raises(NoBackendError, match=name) as raised:
            call()
        assert str(error) in str(raised.value)
        assert "--backend int_mm" in str(raised.value)
        assert raised.value.__cause__ is error


@works
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        KeyboardInterrupt(),
        ValueError("ours"),
    ],
    ids=repr,
)
def test_errors_that_are_not_the_kernels_pass_as_they_are(monkeypatch, calls, error) -> None:
    from mixdq.runtime.kernels.gpu.layers import GpuLayer

    monkeypatch.setattr(GpuLayer, "_launch", failing(error))
    for call in calls.values():
        with pytest.raises(type(error)) as raised:
            call()
        assert raised.value is error


@works
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 3])
def test_parts_of_a_joined_input_are_added_as_the_reference_adds_them(dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(9, 4, size, padding=size // 2, device=DEVICE)
    layout = LayerLayout(
        name="shortcut", bits=LayerBits(weight=8, activation=8), symmetric=True, splits=(4, 5), bos=False, dynamic=True
    )
    parts = quantize_weight(module.weight, 8, splits=(4, 5))
    x = torch.randn(2, 9, 4, 3, device=DEVICE).to(dtype)
    found, wanted = (
        QuantizedConv2d.from_float(module, layout, parts, None, backend=name).run(x) for name in ("cuda", "reference")
    )
    assert found.dtype == dtype
    assert torch.equal(found, wanted)


@works
@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("shape", "groups"), [((1, 1), 1), ((33, 5), 1), ((70, 8, 3, 3), 2), ((6, 1, 1, 2), 3)])
def test_planes_give_the_portable_codes_back(num_bits: int, shape: tuple[int, ...], groups: int) -> None:
    (part,) = quantize_weight(torch.randn(shape, device=DEVICE), num_bits, symmetric=num_bits == 8)
    request = replace(
        REQUEST,
        op="linear" if len(shape) == 2 else "conv2d",
        bits=LayerBits(weight=num_bits, activation=8),
        weight_shape=shape,
        groups=groups,
        symmetric=num_bits == 8,
    )
    kernel = CUDA.bind(request, part, None, None)
    assert isinstance(kernel, HoldingKernel)
    assert torch.equal(kernel.portable_codes(), part.codes)
    assert kernel.portable_codes().is_contiguous()
