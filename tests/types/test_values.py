import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixdq.errors import ConfigError
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import BitPlan, Budget, LayerBits, check_bits, is_dynamic
from mixdq.types.scores import ErrorModel, Score, SensitivityTable
from mixdq.types.tensors import ActivationRange, QuantSpec

WIDTHS = st.sampled_from([*range(2, 9), 16])
GOOD = {"name": "a", "op": "linear", "group": "content", "weight_shape": (2, 4), "input_numel": 4, "macs": 8}


@given(WIDTHS, WIDTHS)
def test_layer_bits_survive_their_text(weight, activation) -> None:
    bits = LayerBits(weight=weight, activation=activation)
    assert LayerBits.parse(str(bits)) == bits


def test_floats_have_eight_bits_on_both_sides_and_are_no_integers() -> None:
    bits = LayerBits(weight=8, activation=8, number="float")
    assert str(bits) == "W8A8 float"
    assert LayerBits.parse("W8A8 float") == bits != LayerBits.parse("W8A8")
    with pytest.raises(ValueError, match="expected 'int' or 'float'"):
        LayerBits(weight=8, activation=8, number="double")
    for wrong in ({"num_bits": 4, "symmetric": True}, {"num_bits": 8, "symmetric": False}):
        with pytest.raises(ValueError, match="8 bits and no zero point"):
            QuantSpec(number="float", **wrong)
    for end in ("code_min", "code_max"):
        with pytest.raises(ValueError, match="no range of integers"):
            getattr(QuantSpec(num_bits=8, symmetric=True, number="float"), end)


NO_FLOATS = ["W4A8 float", "W8A16 float", "W16A16 float", "W8A8float", "W8A8  float", "W8A8 Float", "W8A8 float "]


@pytest.mark.parametrize("text", ["", "W4", "w4a8", "W4A8 ", "W-4A8", "W4A9", "W1A8", "W16A17", "W100A8", *NO_FLOATS])
def test_other_texts_are_no_layer_bits(text) -> None:
    with pytest.raises(ValueError, match=r"W4A8|bits"):
        LayerBits.parse(text)


@given(st.integers())
def test_widths_are_two_to_eight_and_sixteen(bits) -> None:
    if 2 <= bits <= 8 or bits == 16:
        assert check_bits(bits) == bits
    else:
        with pytest.raises(ValueError, match="expected 2 to 8"):
            check_bits(bits)


@pytest.mark.parametrize(
    "wrong",
    [{"weight_shape": (2, 4, 1)}, {"weight_shape": (0, 4)}, {"input_numel": 0}, {"macs": 0}, {"input_splits": (1, 2)}],
)
def test_impossible_layers_are_refused(wrong) -> None:
    assert LayerSpec(**GOOD).weight_numel == 8
    with pytest.raises(ValueError, match="a"):
        LayerSpec(**{**GOOD, **wrong})


def test_layer_table_finds_layers_by_name_and_refuses_doubles() -> None:
    layer = LayerSpec(**GOOD)
    table = LayerTable(model="m", family="f", digest="d", layers=(layer,))
    assert (table["a"], len(table), list(table)) == (layer, 1, [layer])
    with pytest.raises(KeyError):
        table["b"]
    with pytest.raises(ValueError, match="repeat"):
        dataclasses.replace(table, layers=(layer, layer))


@pytest.mark.parametrize(
    "wrong",
    [
        {"activation_bits": 8.0},
        {"weight_bits": 4.0, "protect": 1.5},
        {"weight_bits": 4.0, "weight_choices": {"content": ()}},
        {"weight_bits": 4.0, "activation_choices": {"content": (9,)}},
    ],
)
def test_impossible_budgets_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"budget|share|width|bits"):
        Budget(**wrong)


def test_plan_needs_layers() -> None:
    with pytest.raises(ValueError, match="without layers"):
        BitPlan(name="x", layers={})


def test_scores_are_numbers_and_grouped_by_layer() -> None:
    scores = [Score(layer="a", role="weight", num_bits=b, metric="sqnr", value=v) for b, v in ((4, 1.0), (8, math.inf))]
    table = SensitivityTable(scores=tuple(scores), origin={})
    assert table.by_layer("weight", "sqnr") == {"a": {4: 1.0, 8: math.inf}}
    assert table.by_layer("activation", "sqnr") == table.by_layer("weight", "ssim") == {}
    with pytest.raises(ValueError, match="not a number"):
        dataclasses.replace(scores[0], value=math.nan)


def test_activations_are_static_or_dynamic_and_nothing_else() -> None:
    assert not is_dynamic("static")
    assert is_dynamic("dynamic")
    with pytest.raises(ConfigError, match="activations = 'Dynamic': expected 'static' or 'dynamic'"):
        is_dynamic("Dynamic")


@given(st.integers(2, 8), st.booleans())
def test_codes_fit_their_bits(bits, symmetric) -> None:
    spec = QuantSpec(num_bits=bits, symmetric=symmetric)
    assert spec.code_max - spec.code_min + 1 == 2**bits - symmetric
    assert not symmetric or spec.code_min == -spec.code_max


@pytest.mark.parametrize(
    ("low", "high", "batches"), [(1.0, 0.0, 1), (math.nan, 0.0, 1), (0.0, math.inf, 1), (0.0, 1.0, 0)]
)
def test_impossible_ranges_are_refused(low, high, batches) -> None:
    with pytest.raises(ValueError, match="range"):
        ActivationRange(min=low, max=high, batches=batches)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf])
def test_weights_of_an_error_model_are_positive_numbers(weight) -> None:
    with pytest.raises(ValueError, match="content weight: weight"):
        ErrorModel(weights={"content": {"weight": weight}}, plans=8, correlation=0.9)
