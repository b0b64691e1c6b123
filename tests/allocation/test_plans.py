import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixdq.allocation.plans import layer_bytes, mean_bits, uniform_plan, weight_bytes
from mixdq.errors import PlanError
from mixdq.runtime.layout import LayerLayout, tensor_specs
from mixdq.types.layers import LayerSpec
from mixdq.types.plan import FLOAT_BITS, BitPlan, LayerBits


def linear(rows: int, columns: int, splits: tuple[int, ...] = ()) -> LayerSpec:
    return LayerSpec(
        name="l", op="linear", group="content", weight_shape=(rows, columns), input_numel=1, macs=1, input_splits=splits
    )


def test_uniform_plan_has_its_bits_as_means(table) -> None:
    plan = uniform_plan(table, 4, 8)
    assert plan.name == "W4A8-uniform"
    assert mean_bits(plan, table) == (4.0, 8.0)
    assert list(plan.layers) == [layer.name for layer in table]


def test_kept_layers_count_sixteen(table) -> None:
    kept = table.layers[0]
    plan = uniform_plan(table, 4, 8, "mine", keep=(kept.name,))
    weight, activation = mean_bits(plan, table)
    total = sum(layer.weight_numel for layer in table)
    assert plan.name == "mine"
    assert str(plan.layers[kept.name]) == "W16A16"
    assert weight == pytest.approx(4 + 12 * kept.weight_numel / total)
    assert activation == pytest.approx(8 + 8 * kept.input_numel / sum(layer.input_numel for layer in table))


def test_bytes_of_a_layer_are_packed_rows_and_scales() -> None:
    # Rows of 5 codes: 10, 20 and 40 bits make 2, 3 and 5 bytes; one 4-byte scale a row.
    assert [layer_bytes(linear(7, 5), bits) for bits in (2, 4, 8)] == [7 * (2 + 4), 7 * (3 + 4), 7 * (5 + 4)]
    assert layer_bytes(linear(7, 5), 16) == 7 * 5 * 2


def test_parts_of_a_joined_input_are_packed_and_scaled_apart() -> None:
    # Parts of 1 and 4 channels at 2 bits: one byte each, and two scales.
    assert layer_bytes(linear(7, 5, (1, 4)), 2) == 7 * (1 + 1 + 2 * 4)


@given(st.integers(1, 50), st.integers(1, 50), st.integers(2, 8))
def test_packing_never_takes_less_than_the_bits(rows, columns, bits) -> None:
    packed = layer_bytes(linear(rows, columns), bits) - 4 * rows
    assert rows * columns * bits <= 8 * packed < rows * columns * bits + 8 * rows


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", range(2, 9))
@pytest.mark.parametrize("splits", [(), (1, 4)])
def test_bytes_of_a_layer_are_those_of_its_tensors(num_bits, symmetric, splits) -> None:
    layer = linear(7, 5, splits)
    bits = LayerBits(weight=num_bits, activation=FLOAT_BITS)
    layout = LayerLayout(name="l", bits=bits, symmetric=symmetric, splits=splits)
    specs = tensor_specs(layout, layer.weight_shape).values()
    assert layer_bytes(layer, num_bits, symmetric=symmetric) == sum(
        math.prod(shape) * dtype.itemsize for shape, dtype in specs
    )


def test_bytes_of_a_plan_add_up(table) -> None:
    assert weight_bytes(uniform_plan(table, 16, 16), table) == 2 * sum(layer.weight_numel for layer in table)
    assert weight_bytes(uniform_plan(table, 4, 8), table) == sum(layer_bytes(layer, 4) for layer in table)


def test_plan_for_another_model_is_refused_with_every_disagreement(table) -> None:
    plan = uniform_plan(table, 4, 8)
    layers = dict(plan.layers)
    layers["stranger"] = layers.pop("block.3")
    with pytest.raises(PlanError, match="another model") as caught:
        mean_bits(BitPlan(name="x", layers=layers), table)
    assert len(caught.value.disagreements) == 2


def test_uniform_floats_are_linear_layers_alone_and_have_no_zero_points(table) -> None:
    plan = uniform_plan(table, 8, 8, number="float")
    assert plan.name == "W8A8 float-uniform"
    for layer in table:
        assert str(plan.layers[layer.name]) == ("W8A8 float" if layer.op == "linear" else "W8A8")
    whole = uniform_plan(table, 8, 8)
    assert weight_bytes(plan, table) == weight_bytes(whole, table)
    rows = sum(layer.weight_shape[0] * max(1, len(layer.input_splits)) for layer in table if layer.op == "linear")
    assert weight_bytes(whole, table, symmetric=False) - weight_bytes(plan, table, symmetric=False) == 4 * rows
