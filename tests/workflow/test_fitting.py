import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixdq.allocation.plans import uniform_plan, weight_bytes
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import BitPlan, LayerBits
from mixdq.workflow.fitting import ARCHITECTURE, architecture_digest, differences, fitted, uniform_like


def layer(name: str, **changes) -> LayerSpec:
    values = {
        "name": name,
        "op": "linear",
        "group": "content",
        "weight_shape": (8, 24),
        "input_numel": 48,
        "macs": 1,
        "bos": False,
        "input_splits": (),
    }
    return LayerSpec(**{**values, **changes})


def table(*layers: LayerSpec) -> LayerTable:
    return LayerTable(model="m", family="sdxl", digest="d", layers=layers)


TABLE = table(layer("a"), layer("b"), layer("c", op="conv2d", weight_shape=(8, 4, 3, 3)))


def test_plan_fits_every_model_with_layers_of_the_same_names_kinds_and_shapes() -> None:
    plan = uniform_plan(TABLE, 4, 8)
    tuned = LayerTable(model="tuned", family="sdxl", digest="other", layers=TABLE.layers)
    assert differences(plan, tuned) == differences(plan, tuned, TABLE) == []
    assert architecture_digest(tuned) == architecture_digest(TABLE)


@pytest.mark.parametrize(
    ("here", "says"),
    [
        (table(layer("a"), layer("b")), ["c: the model has no such layer"]),
        (table(*TABLE.layers, layer("d")), ["d: the plan says nothing of it"]),
        (
            table(layer("a"), layer("b", weight_shape=(8, 9)), TABLE.layers[2]),
            ["b: linear [8, 9], but linear [8, 24] in the model that the plan was made for"],
        ),
        (
            table(layer("a"), layer("b", op="conv2d", weight_shape=(8, 24, 1, 1)), TABLE.layers[2]),
            ["b: conv2d [8, 24, 1, 1], but linear [8, 24] in the model that the plan was made for"],
        ),
    ],
)
def test_every_difference_is_named(here, says) -> None:
    assert differences(uniform_plan(TABLE, 4, 8), here, TABLE) == says
    assert architecture_digest(here) != architecture_digest(TABLE)


def test_digest_of_the_architecture_tells_of_other_shapes_where_the_plan_stands_alone() -> None:
    bare = uniform_plan(TABLE, 4, 8)
    plan = BitPlan(name="p", layers=bare.layers, origin={ARCHITECTURE: architecture_digest(TABLE)})
    wider = table(layer("a"), layer("b", weight_shape=(8, 9)), TABLE.layers[2])
    assert differences(plan, TABLE) == []
    assert len(differences(plan, wider)) == 1
    # Without it names are all there is.
    assert differences(bare, wider) == []


def test_fitted_plan_is_for_exactly_the_layers_there_are() -> None:
    plan = uniform_plan(TABLE, 4, 8)
    found = fitted(plan, table(layer("b"), layer("new")))
    assert {name: str(bits) for name, bits in found.layers.items()} == {"b": "W4A8", "new": "W16A16"}
    assert fitted(plan, TABLE) == plan


@given(st.lists(st.sampled_from(["W2A8", "W3A4", "W4A8", "W8A8", "W6A16", "W16A16"]), min_size=3, max_size=3))
def test_plain_plan_spends_the_same_bytes_to_within_one_bit_of_a_layer(bits) -> None:
    plan = BitPlan(name="p", layers={one.name: LayerBits.parse(text) for one, text in zip(TABLE, bits, strict=True)})
    plain = uniform_like(plan, TABLE)
    budget, spent = weight_bytes(plan, TABLE), weight_bytes(plain, TABLE)
    quantized = [name for name, of_layer in plan.layers.items() if of_layer.weight != 16]
    assert spent <= budget
    assert all(plain.layers[name] == plan.layers[name] for name in plan.layers if name not in quantized)
    widths = [plain.layers[name].weight for name in quantized]
    assert not widths or max(widths) - min(widths) <= 1
    if any(width < 8 for width in widths):
        # One bit more of the widest layer, 8 rows of 36 weights.
        assert budget - spent <= 8 * 36 / 8 + 8
    assert len({plain.layers[name].activation for name in quantized}) <= 1


def test_plain_plan_of_a_uniform_plan_is_that_plan() -> None:
    for width in (2, 4, 8):
        assert uniform_like(uniform_plan(TABLE, width, 8), TABLE).layers == uniform_plan(TABLE, width, 8).layers
