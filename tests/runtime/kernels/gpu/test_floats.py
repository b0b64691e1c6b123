"""Linear layers of E4M3 floats against plain torch's, codes and scales bit for bit; interpreted, or on a GPU."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from mixdq.metrics.sqnr import sqnr
from mixdq.quant.affine import quantize
from mixdq.quant.bos import BosRow
from mixdq.quant.qparams import activation_qparams, row_qparams
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.backends.cuda import GpuProduct
from mixdq.runtime.backends.fp8 import Fp8Backend, _Product, _trouble
from mixdq.runtime.before import GEGLU, NOTHING, SILU, Before, Kind
from mixdq.runtime.blocks import fold_blocks
from mixdq.runtime.kernel import KernelRequest
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.kernels.gpu.inputs import as_picture, prepare
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.together import together
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange, QParams

DEVICE = available.device_type()
REQUEST = KernelRequest(
    layer="mid.to_q",
    op="linear",
    bits=LayerBits(weight=8, activation=8, number="float"),
    weight_shape=(48, 70),
    device=DEVICE,
    dtype=torch.float32,
    output_dtype=torch.float32,
)
REFUSALS = [*filter(None, [available.trouble()]), *Fp8Backend().refusals(REQUEST)]
pytestmark = pytest.mark.skipif(bool(REFUSALS), reason="; ".join(REFUSALS))

STATIC = activation_qparams(ActivationRange(min=-2.0, max=2.5, batches=1), 8, "float")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

Quantize = Callable[..., QuantizedLinear]


class Operators(TorchDispatchMode):
    """Counts what torch computes itself, or waits for; not what only allocates, or is Triton's interpreter's own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.others = {"empty"} | ({"new_empty", "set_", "copy_"} if available.interpreted() else set())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func._opname not in self.others:
            self.calls[f"{func._opname}.{func._overloadname}"] += 1
        return func(*args, **(kwargs or {}))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def both(
    dtype: torch.dtype, activation: QParams | None, shape: tuple[int, int] = (48, 70), by_rows: bool = True
) -> tuple[GpuProduct, _Product]:
    """The same layer by these kernels and in plain torch."""
    if by_rows and (trouble := _trouble(DEVICE, dtype, by_rows=True)):
        pytest.skip(trouble)
    request = replace(REQUEST, weight_shape=shape, dtype=dtype, output_dtype=dtype, dynamic=activation is None)
    (part,) = quantize_weight(random(*shape), 8, number="float")
    bias = random(shape[0], seed=1, dtype=dtype)
    kernel: Any = Fp8Backend().bind(request, part, bias, activation)
    assert isinstance(kernel, GpuProduct)
    kernel.layer._by_rows = by_rows
    return kernel, _Product(request, part, bias, activation, by_rows)


def same(found: Tensor, wanted: Tensor) -> bool:
    """Whether products are equal; on a GPU those of other sizes may be summed in another order."""
    if DEVICE == "cpu":
        return torch.equal(found, wanted)
    return torch.allclose(found.float(), wanted.float(), rtol=2.0**-7, atol=2.0**-7)


def numbers_after(before: Before, kernel: GpuProduct, x: Tensor) -> Tensor:
    """What the pass that makes codes makes of `x` [batch, rows, channels] where it makes none."""
    tensors = replace(kernel.layer.tensors, low=0, high=0)
    made = prepare(as_picture(x, apart=before.kind == "group_norm"), tensors, None, 1, before).x
    return made.view(*x.shape[:-1], -1)[..., : tensors.order.channels]


@settings(max_examples=10, derandomize=True, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    channels=st.integers(1, 140),
    magnitude=st.integers(-120, 120),
    dynamic=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_and_scales_are_those_of_quant(dtype, channels, magnitude, dynamic, last, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, channels, generator=generator).double()
    # Many lie half-way between two floats.
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.5, (x * 16).round() / 16, x)
    x *= 2.0 ** (magnitude + torch.randint(-8, 8, (6, 1), generator=generator))
    limit = torch.finfo(dtype).max
    x = x.clamp(-limit, limit).to(dtype).to(DEVICE)
    if dtype == torch.bfloat16:
        # Triton's interpreter misreads the least.
        x = x.where(x.abs() >= torch.finfo(dtype).tiny, 0.0)
    static = replace(STATIC, scale=torch.tensor(2.0**magnitude, device=DEVICE) / 100)
    kernel, _ = both(torch.float32, None if dynamic else static, (16, channels))
    rows = x if last else x.t().contiguous().t()
    made = prepare(as_picture(rows), kernel.layer.tensors, None, 1)
    wanted = row_qparams(x, 8, axes=1, number="float") if dynamic else static
    assert torch.equal(made.x.view(6, -1)[:, :channels], quantize(x, wanted))
    assert not made.x.view(6, -1)[:, channels:].any()
    assert torch.equal(made.row_scale, wanted.scale.flatten().expand(6))


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_are_plain_torchs_of_any_strides_and_widths(by_rows: bool, dtype: torch.dtype) -> None:
    for shape, static in (((48, 70), None), ((5, 64), STATIC)):
        ours, plain = both(dtype, static, shape, by_rows)
        assert torch.equal(ours.portable_codes(), plain.portable_codes())
        x = random(3, 5, shape[1], seed=2, dtype=dtype)
        for each in (x[:, 1:].mT.contiguous().mT, x[0, 0]):
            assert same(ours(each), plain(each))


@pytest.mark.parametrize("by_rows", [True, False])
def test_a_part_of_a_joined_input_adds_to_the_others(by_rows: bool) -> None:
    ours, plain = both(torch.float32, None, by_rows=by_rows)
    x, total = random(3, 5, 70, seed=2), random(3, 5, 48, seed=3)
    for dtype in DTYPES:
        assert same(ours.add(x, total, dtype), (total + plain(x)).to(dtype))


@pytest.mark.parametrize("by_rows", [True, False])
def test_a_number_that_is_none_spoils_its_own_row_alone(by_rows: bool) -> None:
    for static in (None, STATIC):
        ours, plain = both(torch.float16, static, by_rows=by_rows)
        x = random(5, 70, seed=2, dtype=torch.float16)
        x[1:4, 5] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        found = ours(x)
        assert found.isnan().all(1).tolist() == [False, True, True, True, False]
        assert same(found[::4], plain(x)[::4])


def norm(kind: Kind, channels: int = 70, groups: int = 1) -> Before:
    return Before(kind, random(channels, seed=4), random(channels, seed=5), groups, 1e-5)


BEFORES: dict[str, Callable[[], Before]] = {
    "group norm": lambda: norm("group_norm", groups=2),
    "layer norm": lambda: norm("layer_norm"),
    "gate": lambda: GEGLU,
    "SiLU": lambda: SILU,
}


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("what", list(BEFORES))
def test_folded_it_is_the_product_of_what_stands_before_and_one_sum(what: str, by_rows: bool) -> None:
    before = BEFORES[what]()
    ours, _ = both(torch.float32, STATIC if what == "SiLU" else None, by_rows=by_rows)
    x = random(2, 6, 140 if before is GEGLU else 70, seed=2)
    added = random(2, 6, 48, seed=3)
    numbers = numbers_after(before, ours, x)
    assert torch.allclose(numbers, before(x, -1), rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.folded(x, before, added), ours(numbers) + added)
    assert torch.equal(ours.folded(x, before, added[:1, :1]), ours(numbers) + added[:1, :1])


@pytest.mark.parametrize(("by_rows", "sums"), [(True, 1), (False, 0)])
def test_a_call_is_two_passes_and_a_sum_at_most(by_rows: bool, sums: int) -> None:
    ours, _ = both(torch.float32, None, by_rows=by_rows)
    x, added = random(2, 6, 70, seed=2), random(2, 6, 48, seed=3)
    for before, more in ((NOTHING, None), (norm("layer_norm"), added)):
        with Operators() as operators:
            ours.folded(x, before, more)
        # What is no operator is a kernel of ours.
        apart = more is not None or not by_rows
        wanted = {"_scaled_mm.default" if apart else "_scaled_mm.out": 1, "add.out": sums if more is not None else 0}
        assert operators.calls == +Counter(wanted)


@pytest.fixture
def make(quantized: Quantize) -> Callable[..., QuantizedLinear]:
    """Return a function (outputs, "W8A8 float", ...) -> a layer of 24 channels."""

    def layer(out: int, bits: str = "W8A8 float", **more: Any) -> QuantizedLinear:
        backend = "fp8" if "float" in bits else "cuda"
        return quantized(nn.Linear(24, out), bits, backend=backend, **more).to(DEVICE)

    return layer


def test_layers_of_one_input_are_one_product_beside_others(make: Callable[..., QuantizedLinear]) -> None:
    bits = ["W8A8 float", "W8A8 float", "W8A8", "W8A8 float"]
    layers = [make(out, each, dynamic=True) for out, each in zip((16, 40, 5, 9), bits, strict=True)]
    x, before = random(2, 5, 24), norm("layer_norm", 24)
    expected = [layer.kernel_for(x).folded(x, before, None) for layer in layers]  # type: ignore[attr-defined]
    for _ in range(2):
        with Operators() as operators:
            found = together(layers, x, before)
        assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert operators.calls["_scaled_mm.default"] == 2
    assert all(torch.equal(layer(x), layer.kernel_for(x)(x)) for layer in layers)


@pytest.mark.parametrize("bias", [False, True])
def test_first_tokens_are_the_references_and_nothing_waits(quantized: Quantize, bias: bool) -> None:
    state = random(24, seed=6).cpu()
    module = nn.Linear(24, 9, bias=bias)
    rows = BosRow(input=state, output=torch.randn(9))
    ours, wanted = (
        quantized(module, "W8A8 float", bos=rows, dynamic=True, backend=name).to(DEVICE)
        for name in ("fp8", "reference")
    )
    x = random(3, 7, 24)
    # A multiple of the stored state, another state, and the stored one.
    x[0, 0], x[2, 0] = 0.5 * state.to(DEVICE), state.to(DEVICE)
    with pytest.warns(UserWarning, match="not the one calibrated"):
        expected = wanted(x)
    ours(x)
    with Operators() as operators:
        found = ours(x)
    assert set(operators.calls) <= {"_scaled_mm.default", "_scaled_mm.out", "copy_.default"}
    off = 1e-4 if DEVICE == "cpu" else 2e-2
    assert torch.allclose(found, expected, rtol=off, atol=off)


@torch.no_grad()
def test_a_block_of_them_has_its_norms_and_gate_folded_and_fewer_products(quantized: Quantize) -> None:
    block = BasicTransformerBlock(dim=8, num_attention_heads=2, attention_head_dim=4, cross_attention_dim=6).eval()
    for name, module in list(block.named_modules()):
        if type(module) is nn.Linear:
            block.set_submodule(name, quantized(module, "W8A8 float", dynamic=True, backend="fp8"))
    plain = nn.ModuleList([block.to(DEVICE)])
    folded = copy.deepcopy(plain)
    assert fold_blocks(folded) == 1
    x, text = random(2, 5, 8), random(2, 3, 6)
    counts, outputs = [], []
    for (each,) in (plain, folded):
        each(x, encoder_hidden_states=text)
        with Operators() as operators:
            outputs.append(each(x, encoder_hidden_states=text))
        calls = Counter(name.partition(".")[0] for name in operators.calls.elements())
        counts.append([calls[name] for name in ("native_layer_norm", "gelu", "_scaled_mm")])
    # Queries, keys and values are one product, and so are the text's keys and values.
    assert counts == [[3, 1, 10], [0, 0, 7]]
    assert sqnr(*outputs) > 40.0
