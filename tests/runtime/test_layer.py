import copy
import io
from collections.abc import Callable

import accelerate
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from mixdq.errors import ConfigError, NoBackendError
from mixdq.quant.bos import BosRow
from mixdq.runtime.kernels import native
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.layout import EXACT_NAMES
from mixdq.runtime.linear import QuantizedLinear

Quantize = Callable[..., QuantizedLinear]


@pytest.fixture(params=["reference", "cpu"])
def layer(request: pytest.FixtureRequest, quantized: Quantize) -> QuantizedLinear:
    """One of everything: packed codes, two parts, zero points, a bias, a BOS row; on backends of either kind.

    The CPU's kernels hold the weight themselves once they are bound, the reference's read the layer's.
    """
    if request.param == "cpu" and native.trouble():
        pytest.skip(str(native.trouble()))
    module = nn.Linear(9, 5)
    bos = BosRow(input=torch.full((9,), 50.0), output=torch.randn(5))
    return quantized(module, "W3A8", splits=(4, 5), symmetric=False, bos=bos, backend=request.param)


@pytest.fixture
def x() -> torch.Tensor:
    """Two texts of four tokens."""
    x = torch.randn(2, 4, 9)
    x[:, 0] = 50.0
    return x


def exact(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items() if name != "bias"}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


CASTS = [
    nn.Module.half,
    nn.Module.double,
    nn.Module.bfloat16,
    lambda m: m.to(torch.float16),
    lambda m: m.type(torch.half),
]


@pytest.mark.parametrize("cast", CASTS, ids=["half", "double", "bfloat16", "to", "type"])
def test_casting_leaves_codes_scales_and_bos_rows_alone(
    layer: QuantizedLinear, x: torch.Tensor, cast: Callable[[nn.Module], nn.Module]
) -> None:
    before, y = exact(layer), layer(x)
    model = nn.Sequential(layer)
    cast(model)
    assert same(exact(layer), before)
    assert layer.bias is not None
    assert layer.bias.dtype != torch.float32
    if layer.backend == "cpu" and layer.bias.dtype == torch.float64:
        with pytest.raises(NoBackendError, match=r"inputs of torch\.float64"):
            layer(x.double())
        return
    z = layer(x.to(layer.bias.dtype))
    assert z.dtype == layer.bias.dtype
    # Casting back gives the old outputs, but for the bias that went through 8 or 11 bits of mantissa.
    assert torch.allclose(z.float(), y, atol=0.1)


def test_casting_to_half_and_back_changes_nothing_but_the_bias(layer: QuantizedLinear, x: torch.Tensor) -> None:
    bias = layer.bias
    assert bias is not None
    with torch.no_grad():
        bias.copy_(bias.half())
    y = layer(x)
    layer.half().float()
    assert torch.equal(layer(x), y)


def test_a_move_binds_anew(layer: QuantizedLinear, x: torch.Tensor) -> None:
    layer(x)
    assert layer._bound is not None
    layer.to("cpu")
    assert layer._bound is None


def test_meta_and_back_by_to_empty_keeps_the_dtypes(layer: QuantizedLinear) -> None:
    dtypes = {name: tensor.dtype for name, tensor in layer.state_dict().items()}
    layer.half().to("meta").to_empty(device="cpu")
    assert {name: t.dtype for name, t in layer.state_dict().items() if name != "bias"} == {
        name: dtype for name, dtype in dtypes.items() if name != "bias"
    }


def test_a_deep_copy_is_independent_and_computes_the_same(layer: QuantizedLinear, x: torch.Tensor) -> None:
    y = layer(x)
    twin = copy.deepcopy(layer)
    assert same(exact(twin), exact(layer))
    assert torch.equal(twin(x), y)
    with torch.no_grad():
        layer.weight_scale.zero_()
    assert torch.equal(twin(x), y)


def test_state_dict_round_trip_into_an_empty_layer(layer: QuantizedLinear, x: torch.Tensor) -> None:
    y, state = layer(x), layer.state_dict()
    empty = QuantizedLinear.empty(nn.Linear(9, 5), layer.layout, backend="reference")
    empty.load_state_dict(state)
    assert torch.equal(empty(x), y)


def test_loading_other_numbers_takes_effect_after_a_call(layer: QuantizedLinear, x: torch.Tensor) -> None:
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    y = layer(x)
    layer.load_state_dict({**state, "bias": state["bias"] + 1.0})
    # The BOS row holds its bias already.
    assert torch.allclose(layer(x)[:, 1:], y[:, 1:] + 1.0, atol=1e-6)


def test_assigning_a_state_takes_effect_after_a_call(layer: QuantizedLinear, x: torch.Tensor) -> None:
    layer(x)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["weight_scale"] *= 2.0
    expected = copy.deepcopy(layer)
    expected.load_state_dict(state)
    layer.load_state_dict(state, assign=True)
    assert torch.equal(layer(x), expected(x))


def test_accelerate_offload_gives_the_same_and_keeps_nothing_between_calls(
    layer: QuantizedLinear, x: torch.Tensor
) -> None:
    y = layer(x)
    model = nn.Sequential(layer)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    for _ in range(2):
        assert torch.equal(model(x), y)
        assert layer.weight.device.type == "meta"
        assert layer._bound is None


def test_accelerate_hooks_of_a_resident_model_change_nothing(layer: QuantizedLinear, x: torch.Tensor) -> None:
    y = layer(x)
    model = accelerate.dispatch_model(nn.Sequential(layer), {"": "cpu"}, force_hooks=True)
    assert torch.equal(model(x), y)


def test_group_offload_by_swapping_data_gives_the_same(layer: QuantizedLinear, x: torch.Tensor) -> None:
    y = layer(x)
    for tensor in [*layer.parameters(), *layer.buffers()]:
        tensor.data = tensor.data.clone()
    assert torch.equal(layer(x), y)


def test_no_tensor_shares_memory_with_another(layer: QuantizedLinear) -> None:
    pointers = [tensor.untyped_storage().data_ptr() for tensor in layer.state_dict().values()]
    assert len(set(pointers)) == len(pointers)


def test_put_checks_shape_dtype_and_values(layer: QuantizedLinear) -> None:
    for name in ("weight", *EXACT_NAMES):
        good = layer.state_dict()[name]
        layer.put(name, good.clone())
        with pytest.raises(ValueError, match=name):
            layer.put(name, good[..., :-1])
        with pytest.raises(ValueError, match=name):
            layer.put(name, good.to(torch.float64))
    with pytest.raises(ValueError, match="positive"):
        layer.put("input_scale", torch.tensor([1.0, -1.0]))


def test_backends_are_chosen_at_the_first_call_and_can_be_changed(layer: QuantizedLinear, x: torch.Tensor) -> None:
    y = layer(x)
    with pytest.raises(ConfigError, match="abacus"):
        layer.use_backend("abacus")
    layer.use_backend("cpu")
    with pytest.raises(NoBackendError, match=r"layer \(linear, W3A8, cpu, torch.float64\)"):
        layer(x.double())
    layer.use_backend("reference")
    assert torch.equal(layer(x), y)


def test_a_kernel_that_holds_the_weight_leaves_a_stand_in_and_gives_the_codes_back(
    layer: QuantizedLinear, x: torch.Tensor
) -> None:
    before, codes = exact(layer), layer.weight.data.clone()
    layer(x)
    stand_in = layer.weight
    held = layer.backend == "cpu"
    assert (stand_in.untyped_storage().nbytes() == 1) == held
    assert (stand_in.shape, stand_in.dtype, stand_in.device) == (codes.shape, codes.dtype, codes.device)
    assert same(exact(layer), before)
    layer(x)
    assert layer.weight is stand_in
    layer.use_backend("reference")
    assert torch.equal(layer.weight, codes)


def test_a_weight_that_is_set_by_hand_is_the_one_that_counts(layer: QuantizedLinear, x: torch.Tensor) -> None:
    other = torch.zeros_like(layer.weight)
    y = layer(x)
    layer.weight = nn.Parameter(other.clone(), requires_grad=False)
    assert not torch.equal(layer(x), y)
    assert torch.equal(layer.state_dict()["weight"], other)


def test_layers_say_what_they_are(layer: QuantizedLinear) -> None:
    assert isinstance(layer, QuantizedLayer)
    assert isinstance(layer, nn.Linear)
    assert all(fact in repr(layer) for fact in ("in_features=9", "bits=W3A8", "splits=(4, 5)"))


def pickled(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert isinstance(loaded, nn.Module)
    return loaded


def reloaded(layer: nn.Module, *, assign: bool) -> nn.Module:
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.load_state_dict({**state, "weight_scale": state["weight_scale"] * 1.25}, assign=assign)
    return layer


EVENTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "nothing": lambda layer: layer,
    "half": lambda layer: layer.half(),
    "bfloat16": lambda layer: layer.to(torch.bfloat16),
    "float": lambda layer: layer.float(),
    "type": lambda layer: layer.type(torch.float32),
    "a move": lambda layer: layer.to("cpu"),
    "a loaded state": lambda layer: reloaded(layer, assign=False),
    "an assigned state": lambda layer: reloaded(layer, assign=True),
    "a copy": copy.deepcopy,
    "a file": pickled,
    "another text": lambda layer: layer.scale_at_run_time(not layer._at_run_time) or layer,
}


@pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    linear=st.booleans(),
    bits=st.sampled_from(["W8A8", "W4A8", "W3A5", "W2A8"]),
    dynamic=st.booleans(),
    events=st.lists(
        st.tuples(st.sampled_from(sorted(EVENTS)), st.integers(1, 4), st.integers(3, 7), st.booleans()), max_size=6
    ),
)
def test_whatever_happens_to_a_layer_the_cpu_gives_what_the_reference_gives(
    quantized: Quantize, linear: bool, bits: str, dynamic: bool, events: list[tuple[str, int, int, bool]]
) -> None:
    torch.manual_seed(0)
    bos = BosRow(input=torch.full((9,), 50.0), output=torch.randn(5))
    module = nn.Linear(9, 5) if linear else nn.Conv2d(9, 5, 3, padding=1)
    facts = {"splits": (4, 5), "symmetric": bits == "W8A8", "bos": bos if linear else None, "dynamic": dynamic}
    ours, reference = (quantized(module, bits, backend=name, **facts) for name in ("cpu", "reference"))
    for event, batch, size, inference in [("nothing", 2, 4, False), *events]:
        ours, reference = EVENTS[event](ours), EVENTS[event](reference)
        x = torch.randn((batch, size, 9) if linear else (batch, 9, size, size + 1))
        if linear:
            x[:, 0] = 50.0
        x = x.to(ours.bias.dtype)
        with torch.inference_mode(inference):
            assert torch.equal(ours(x), reference(x))
    assert same(exact(ours), exact(reference))


@pytest.mark.parametrize("shape", [(), (8,), (2, 10), (2, 4, 0)])
def test_an_input_of_other_width_is_refused_with_the_layers_name(
    layer: QuantizedLinear, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"layer: expected an input \[\.\.\., 9\], found \["):
        layer(torch.ones(shape))


def test_a_layer_without_its_tensors_says_where_they_are(layer: QuantizedLinear, x: torch.Tensor) -> None:
    y = layer(x)
    state = layer.state_dict()
    layer.to("meta")
    with pytest.raises(NoBackendError, match="layer: its weight is on meta, its input on cpu"):
        layer(x)
    layer.to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(layer(x), y)
