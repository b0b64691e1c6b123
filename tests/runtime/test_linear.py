from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mixdq.errors import BosNotConstantError
from mixdq.quant.bos import BosRow, bos_projection
from mixdq.quant.simulate import simulated_layer
from mixdq.quant.weights import fake_quantize_weight, quantize_weight
from mixdq.runtime.kernels import native
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.linear import QuantizedLinear
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange

Quantize = Callable[..., QuantizedLinear]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bits=st.one_of(
        st.builds(LayerBits, weight=st.integers(2, 8), activation=st.sampled_from([4, 8, 16])),
        st.just(LayerBits.parse("W8A8 float")),
    ),
    backend=st.sampled_from(["reference", "fp8"]),
    symmetric=st.booleans(),
    splits=st.sampled_from([(), (8, 5)]),
    with_bos=st.booleans(),
    bias=st.booleans(),
    dynamic=st.booleans(),
)
def test_it_computes_what_was_simulated(
    quantized: Quantize,
    ranges: tuple[ActivationRange, ...],
    bits: LayerBits,
    backend: str,
    symmetric: bool,
    splits: tuple[int, ...],
    with_bos: bool,
    bias: bool,
    dynamic: bool,
) -> None:
    module = nn.Linear(13, 7, bias=bias)
    x = torch.randn(3, 5, 13)
    bos = None
    if with_bos:
        bos = BosRow(input=torch.randn(13) * 100, output=torch.randn(7))
        x[:, 0] = bos.input
    facts = {"splits": splits, "symmetric": symmetric or bits.is_float, "bos": bos, "dynamic": dynamic}
    layer = quantized(module, str(bits), **facts, backend=backend if bits.is_float else "reference")
    known = () if dynamic else ranges[: max(1, len(splits))]
    with simulated_layer(module, bits, ranges=known, **facts):
        expected = module(x)
    # Sums of 13 float32 products of numbers below 8 x 1, in two orders; scales may come before them.
    assert torch.allclose(layer(x), expected, rtol=0.0, atol=2 * 16 * 8 * 2.0**-24)


def test_float_weight_is_the_fake_quantized_one(quantized: Quantize) -> None:
    module = nn.Linear(13, 7)
    layer = quantized(module, "W3A8", splits=(6, 7))
    expected = fake_quantize_weight(module.weight, 3, splits=(6, 7))
    assert torch.equal(layer.float_weight(), expected)
    back = layer.to_float(torch.float16)
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, expected.half())
    assert torch.equal(back.bias, module.bias.half())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W2A4"])
def test_each_row_is_computed_by_itself_whatever_its_memory(
    quantized: Quantize, bits: str, dynamic: bool, backend: str
) -> None:
    if backend == "cpu" and native.trouble():
        pytest.skip(str(native.trouble()))
    layer = quantized(nn.Linear(12, 4), bits, dynamic=dynamic, backend=backend)
    x = torch.randn(3, 6, 12)
    y = layer(x)
    assert torch.equal(layer(x.transpose(0, 1)), y.transpose(0, 1))
    assert torch.equal(layer(x[:, 1:]), y[:, 1:])
    assert torch.equal(layer(x[1, 2]), y[1, 2])


def test_bos_row_is_independent_of_everything_else(quantized: Quantize) -> None:
    bos = BosRow(input=torch.randn(12) * 100, output=torch.randn(4))
    module = nn.Linear(12, 4, bias=False)
    layer = quantized(module, "W8A8", bos=bos)
    x = torch.randn(4, 5, 12)
    x[:, 0] = bos.input
    y = layer(x)
    assert torch.equal(y[:, 0], bos.output.expand(4, -1))
    assert torch.equal(y[:, 1:], quantized(module, "W8A8")(x)[:, 1:])
    assert torch.equal(layer(x[:, :1]), y[:, :1])


def test_scaled_at_run_time_another_first_token_goes_through_the_weight_with_a_warning(quantized: Quantize) -> None:
    module = nn.Linear(12, 4)
    e = torch.randn(12) * 5
    bos = BosRow(input=e, output=module(e).detach())
    layer, x = quantized(module, "W8A8", bos=bos), torch.randn(2, 5, 12)
    x[0, 0], x[1, 0] = e, 0.9 * e + torch.randn(12)
    with pytest.raises(BosNotConstantError, match="calibrate again"):
        layer(x)
    layer.scale_at_run_time(True)
    with pytest.warns(UserWarning, match="another clip skip"):
        y = layer(x)[:, 0]
    alpha, _ = bos_projection(x[:, 0], e)
    rest = (x[:, 0] - alpha.unsqueeze(-1) * e).abs().sum(-1, keepdim=True)
    # Half a step of the widest channel for each number of the rest; and float32's rounding of the whole.
    step = module.weight.abs().max() / 127
    assert bool(((y - module(x[:, 0])).abs() <= 0.5 * step * rest + 12 * 2**-23 * 400).all())


def test_the_first_token_has_no_part_in_any_rows_scale(quantized: Quantize) -> None:
    bos = BosRow(input=torch.full((12,), 1e4), output=torch.randn(4))
    module, x = nn.Linear(12, 4), torch.randn(2, 5, 12)
    x[:, 0] = bos.input
    whole, without = quantized(module, "W8A8", bos=bos, dynamic=True), quantized(module, "W8A8", dynamic=True)
    assert torch.equal(whole(x)[:, 1:], without(x[:, 1:]))


def test_half_precision_models_differ_by_the_final_rounding_alone(quantized: Quantize) -> None:
    layer = quantized(nn.Linear(12, 4, bias=False), "W4A8")
    x = torch.randn(5, 12).half()
    assert torch.equal(layer(x), layer(x.float()).half())


def test_parts_must_fit_the_layout() -> None:
    module = nn.Linear(12, 4)
    layout = LayerLayout(name="layer", bits=LayerBits(weight=8, activation=8))
    with pytest.raises(ValueError, match="needs tensors"):
        QuantizedLinear.from_float(module, layout, quantize_weight(module.weight, 8), None, None, backend="reference")


def test_empty_holds_shapes_on_meta_and_no_memory() -> None:
    with torch.device("meta"):
        module = nn.Linear(2**20, 2**20)
    layer = QuantizedLinear.empty(
        module, LayerLayout(name="layer", bits=LayerBits(weight=4, activation=8)), backend="reference"
    )
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}
    assert layer.weight.shape == (2**20, 2**19)


@pytest.mark.parametrize("sizes", [(9, 5, (4, 5)), (64, 32, (32, 32))], ids=str)
def test_a_kernel_of_floats_holds_the_codes_and_gives_them_back(
    quantized: Quantize, sizes: tuple[int, int, tuple[int, ...]]
) -> None:
    depth, out, splits = sizes
    layer = quantized(nn.Linear(depth, out), "W8A8 float", splits=splits, backend="fp8")
    codes = layer.weight.clone()
    x = torch.randn(3, depth)
    static = layer(x)
    assert layer.weight.untyped_storage().nbytes() == 1
    assert torch.equal(layer.state_dict()["weight"], codes)
    assert torch.equal(layer(x.t().contiguous().t()), static)
    layer.scale_at_run_time(True)
    assert not torch.equal(layer(x), static)
    layer.scale_at_run_time(False)
    assert torch.equal(layer(x), static)
    layer.use_backend("reference")
    assert torch.equal(layer.weight, codes)
    # Two float32 sums of products of numbers below 8 x 1, scales before or after them.
    torch.testing.assert_close(layer(x), static, rtol=0.0, atol=2 * (depth + 3) * 8 * 2.0**-24)
