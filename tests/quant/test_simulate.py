import functools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mixdq.errors import BosNotConstantError, NonFiniteError
from mixdq.quant.affine import dequantize, quantize
from mixdq.quant.bos import BosRow
from mixdq.quant.qparams import activation_qparams, row_qparams
from mixdq.quant.simulate import simulated_layer
from mixdq.quant.weights import dequantize_weight, quantize_weight
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange

RANGE = ActivationRange(min=-2.5, max=3.0, batches=1)
NARROW = ActivationRange(min=-0.2, max=0.1, batches=1)
W4A8 = LayerBits(weight=4, activation=8)
W4A16 = LayerBits(weight=4, activation=16)
W16A4 = LayerBits(weight=16, activation=4)
W16A8 = LayerBits(weight=16, activation=8)


@pytest.fixture(autouse=True)
def _no_grad_and_seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def oracle_input(
    x: Tensor, ranges: Sequence[ActivationRange], num_bits: int, splits: Sequence[int], dim: int
) -> Tensor:
    parts = x.split(list(splits), dim) if splits else (x,)
    qparams = [activation_qparams(rng, num_bits) for rng in ranges]
    return torch.cat([dequantize(quantize(p, q), q) for p, q in zip(parts, qparams, strict=True)], dim).double()


def own_ranges(x: Tensor, splits: Sequence[int], dim: int) -> list[ActivationRange]:
    parts = x.split(list(splits), dim) if splits else (x,)
    return [ActivationRange(min=float(part.min()), max=float(part.max()), batches=1) for part in parts]


def oracle_weight(layer: nn.Module, num_bits: int, splits: Sequence[int]) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return dequantize_weight(quantize_weight(layer.weight, num_bits, splits=splits)).double()


def close(found: Tensor, wanted: Tensor, terms: int, size: float) -> None:
    # A float32 sum of `terms` products, each at most `size`, against float64.
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=terms * size * 2**-23)


@pytest.mark.parametrize("splits", [(), (5, 7)])
def test_linear_equals_the_float64_oracle(splits: tuple[int, ...]) -> None:
    layer, x = nn.Linear(12, 6), torch.randn(2, 5, 12)
    ranges = (RANGE, NARROW) if splits else (RANGE,)
    wanted = nn.functional.linear(
        oracle_input(x, ranges, 8, splits, -1), oracle_weight(layer, 4, splits), layer.bias.double()
    )
    with simulated_layer(layer, W4A8, ranges=ranges, splits=splits):
        close(layer(x), wanted, terms=16, size=3.0)


@pytest.mark.parametrize("splits", [(), (3, 5)])
def test_conv2d_equals_the_float64_oracle_with_borders_of_zeros(splits: tuple[int, ...]) -> None:
    layer, x = nn.Conv2d(8, 4, 3, padding=1, stride=2), torch.randn(2, 8, 6, 6)
    ranges = (RANGE, NARROW) if splits else (RANGE,)
    wanted = nn.functional.conv2d(
        oracle_input(x, ranges, 4, splits, 1), oracle_weight(layer, 8, splits), layer.bias.double(), 2, 1
    )
    with simulated_layer(layer, LayerBits(weight=8, activation=4), ranges=ranges, splits=splits):
        close(layer(x), wanted, terms=80, size=3.0)


@pytest.mark.parametrize("splits", [(), (5, 7)])
def test_dynamic_rows_equal_the_float64_oracle_row_by_row(splits: tuple[int, ...]) -> None:
    layer, x = nn.Linear(12, 6), torch.randn(2, 3, 12) * torch.tensor([0.01, 1.0, 3.0]).unsqueeze(1)
    x[0, 1] = 0.0
    with simulated_layer(layer, W4A8, splits=splits, dynamic=True):
        found = layer(x)
    for place in [(i, j) for i in range(2) for j in range(3)]:
        fake = oracle_input(x[place], own_ranges(x[place], splits, 0), 8, splits, 0)
        close(found[place], nn.functional.linear(fake, oracle_weight(layer, 4, splits), layer.bias.double()), 16, 9.0)


@pytest.mark.parametrize("splits", [(), (3, 5)])
def test_dynamic_pictures_equal_the_float64_oracle_picture_by_picture(splits: tuple[int, ...]) -> None:
    layer, x = nn.Conv2d(8, 4, 3, padding=1, stride=2), torch.randn(3, 8, 6, 6)
    x *= torch.tensor([0.01, 1.0, 3.0]).reshape(3, 1, 1, 1)
    with simulated_layer(layer, LayerBits(weight=8, activation=4), splits=splits, dynamic=True):
        found = layer(x)
    for i in range(3):
        fake = oracle_input(x[i], own_ranges(x[i], splits, 0), 4, splits, 0)
        wanted = nn.functional.conv2d(fake, oracle_weight(layer, 8, splits), layer.bias.double(), 2, 1)
        close(found[i], wanted, terms=80, size=9.0)


def test_one_side_alone_leaves_the_other_in_floating_point() -> None:
    layer, x = nn.Linear(12, 6), torch.randn(3, 12)
    with simulated_layer(layer, W4A16):
        close(layer(x), nn.functional.linear(x.double(), oracle_weight(layer, 4, ()), layer.bias.double()), 16, 4.0)
    quantized = oracle_input(x, (RANGE,), 4, (), -1)
    with simulated_layer(layer, W16A4, ranges=(RANGE,)):
        close(layer(x), nn.functional.linear(quantized, layer.weight.double(), layer.bias.double()), 16, 4.0)


def test_float_bits_change_nothing() -> None:
    layer, x = nn.Linear(12, 6), torch.randn(3, 12)
    before, parameter = layer(x), layer.weight
    bos = BosRow(input=torch.ones(12), output=torch.ones(6))
    with simulated_layer(layer, LayerBits(weight=16, activation=16), bos=bos):
        assert layer.weight is parameter
        assert torch.equal(layer(x), before)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_comes_back_as_it_was(fails: bool, dtype: torch.dtype) -> None:
    layer, x = nn.Conv2d(4, 3, 1).to(dtype), torch.randn(1, 4, 5, 5).to(dtype)
    before = layer(x)
    attributes, weight, bias = dict(vars(layer)), layer.weight, layer.bias
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    try:
        with simulated_layer(layer, W4A8, ranges=(RANGE,)):
            assert not torch.equal(layer(x), before)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert layer.weight is weight
    assert layer.bias is bias
    assert layer.weight.requires_grad
    assert vars(layer).keys() == attributes.keys()
    assert list(layer.state_dict()) == list(state)
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(layer(x), before)


def test_a_wrapped_forward_is_still_used_and_comes_back() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    calls: list[int] = []
    original = layer.forward

    def wrapped(input: Tensor, *, own: nn.Module) -> Tensor:
        calls.append(1)
        return original(input)

    layer.forward = functools.partial(wrapped, own=layer)  # type: ignore[method-assign]
    kept = vars(layer)["forward"]
    with simulated_layer(layer, W16A8, ranges=(RANGE,)):
        layer(x)
    assert calls == [1]
    assert vars(layer)["forward"] is kept


def test_nothing_is_touched_where_the_arguments_do_not_fit() -> None:
    layer = nn.Linear(12, 6)
    parameter, attributes = layer.weight, set(vars(layer))
    with (
        pytest.raises(ValueError, match="2 input parts"),
        simulated_layer(layer, W4A8, ranges=(RANGE,), splits=(5, 7), name="up"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="do not add up to 12"),
        simulated_layer(layer, W16A8, ranges=(RANGE, RANGE), splits=(5, 6)),
    ):
        pass
    layer.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"up\.conv"), simulated_layer(layer, W4A16, name="up.conv"):
        pass
    assert layer.weight is parameter
    assert set(vars(layer)) == attributes


def bos_case(batch: int, bias: bool = False) -> tuple[nn.Linear, BosRow, Tensor]:
    layer = nn.Linear(16, 8, bias=bias)
    e = torch.randn(16)
    e[3] = 800.0
    x = torch.randn(batch, 7, 16)
    x[:, 0] = e
    return layer, BosRow(input=e, output=layer(e)), x


@pytest.mark.parametrize("bits", [W4A8, LayerBits(weight=4, activation=16), LayerBits(weight=16, activation=8)])
@pytest.mark.parametrize("bias", [True, False])
def test_bos_row_is_the_float_one_and_the_others_never_see_it(bits: LayerBits, bias: bool) -> None:
    layer, bos, x = bos_case(batch=3, bias=bias)
    with simulated_layer(layer, bits, ranges=(RANGE,), bos=bos):
        out = layer(x)
    with simulated_layer(layer, bits, ranges=(RANGE,)):
        others = layer(x[:, 1:].contiguous())
    assert torch.equal(out[:, 0], bos.output.expand(3, -1))
    assert torch.equal(out[:, 1:], others)


def test_bos_row_scales_with_its_state() -> None:
    layer, bos, x = bos_case(batch=3)
    x[1, 0] = 0.0
    x[2, 0] *= 0.5
    with simulated_layer(layer, W4A8, ranges=(RANGE,), bos=bos):
        out = layer(x)
    assert torch.equal(out[:, 0], torch.stack([bos.output, 0 * bos.output, 0.5 * bos.output]))


def test_a_foreign_first_token_is_refused_and_the_layer_restored() -> None:
    layer, bos, x = bos_case(batch=2)
    parameter = layer.weight
    with (
        pytest.raises(BosNotConstantError, match="to_k"),
        simulated_layer(layer, W4A8, ranges=(RANGE,), bos=bos, name="to_k"),
    ):
        layer(x.flip(1))
    assert layer.weight is parameter
    assert "forward" not in vars(layer)


def test_a_text_of_one_token_is_the_bos_row() -> None:
    layer, bos, x = bos_case(batch=2)
    with simulated_layer(layer, W4A8, ranges=(RANGE,), bos=bos):
        assert torch.equal(layer(x[:, :1]), bos.output.expand(2, 1, -1))
        assert torch.equal(layer(x[0])[0], bos.output)
        assert torch.equal(layer(bos.input), bos.output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_layers_with_quantized_inputs_compute_in_float32(dtype: torch.dtype) -> None:
    layer, x = nn.Linear(12, 6).to(dtype), torch.randn(2, 12).to(dtype)
    single = nn.Linear(12, 6)
    single.load_state_dict(layer.state_dict())
    with simulated_layer(layer, W4A8, ranges=(RANGE,)), simulated_layer(single, W4A8, ranges=(RANGE,)):
        assert torch.equal(layer(x), single(x.float()).to(dtype))


def test_half_precision_weights_alone_compute_in_their_own_dtype() -> None:
    layer, x = nn.Linear(12, 6).to(torch.bfloat16), torch.randn(2, 12).to(torch.bfloat16)
    wanted = nn.functional.linear(x, oracle_weight(layer, 4, ()).to(torch.bfloat16), layer.bias)
    with simulated_layer(layer, W4A16):
        assert torch.equal(layer(x), wanted)


def test_more_bits_come_nearer() -> None:
    layer, x = nn.Linear(64, 32), torch.randn(8, 64)
    reference = layer(x)
    errors = []
    for num_bits in (2, 4, 6, 8):
        with simulated_layer(layer, LayerBits(weight=num_bits, activation=num_bits), ranges=(RANGE,)):
            errors.append(float((layer(x) - reference).square().mean()))
    assert errors == sorted(errors, reverse=True)


FLOATS = LayerBits(weight=8, activation=8, number="float")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("splits", [(), (5, 7)])
def test_floats_are_those_of_weight_and_input(splits: tuple[int, ...], dynamic: bool) -> None:
    layer, x = nn.Linear(12, 6), torch.randn(4, 12)
    parts = x.split(list(splits) or [12], -1)
    ranges = (RANGE, NARROW)[: len(parts)]
    if dynamic:
        made = [row_qparams(part, 8, axes=1, number="float") for part in parts]
    else:
        made = [activation_qparams(rng, 8, "float") for rng in ranges]
    fake = torch.cat([dequantize(quantize(p, q), q) for p, q in zip(parts, made, strict=True)], -1).double()
    weight = dequantize_weight(quantize_weight(layer.weight, 8, number="float", splits=splits)).double()
    with simulated_layer(layer, FLOATS, ranges=ranges, splits=splits, dynamic=dynamic, symmetric=False):
        close(layer(x), nn.functional.linear(fake, weight, layer.bias.double()), terms=16, size=4.0)


def test_convolutions_have_no_floats() -> None:
    with (
        pytest.raises(ValueError, match="conv_in: W8A8 float is for Linear layers"),
        simulated_layer(nn.Conv2d(3, 4, 1), FLOATS, dynamic=True, name="conv_in"),
    ):
        pass
