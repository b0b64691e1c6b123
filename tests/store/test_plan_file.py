import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixdq.errors import ArtifactFormatError
from mixdq.store.plan_file import dump_plan, parse_plan, read_plan, write_plan
from mixdq.types.plan import BitPlan, LayerBits

WIDTHS = st.integers(2, 8) | st.just(16)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def test_plan_comes_back_equal_and_writes_equal_bytes(tmp_path, plan) -> None:
    path = tmp_path / "plan.toml"
    write_plan(path, plan)
    first = path.read_bytes()
    assert read_plan(path) == plan
    write_plan(path, read_plan(path))
    assert path.read_bytes() == first


@given(st.dictionaries(NAMES, st.builds(LayerBits, weight=WIDTHS, activation=WIDTHS), min_size=1), st.text(max_size=5))
def test_any_layer_names_survive_in_their_order(tmp_path_factory, layers, name) -> None:
    plan = BitPlan(name=name.encode("utf-8", "ignore").decode(), layers=layers)
    back = parse_plan(dump_plan(plan), tmp_path_factory.getbasetemp())
    assert back == plan
    assert list(back.layers) == list(layers)


def test_file_begins_with_schema_and_has_one_line_a_layer(plan) -> None:
    lines = dump_plan(plan).splitlines()
    assert lines[0] == 'schema = "mixdq.plan/1"'
    assert lines[-2] == '"up.0.attn2.to_k" = "W4A8"'
    assert lines.index("[layers]") == len(lines) - 1 - len(plan.layers)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"W4A8"', '"W9A8"', "layers.up.0.attn2.to_k: 9 bits"),
        ('"W4A8"', '"4/8"', "not of the form W4A8"),
        ('"W4A8"', "4", "valid string"),
        ("[layers]", "[lairs]", "unknown key 'lairs'"),
        ("protect = 0.01", "protect = 7.5", "not a share"),
        ("protect = 0.01", "protect = true", "protect: Input should be a valid number"),
        ("protect = 0.01", "project = 0.01", "budget.project|project"),
        ('name = "W4A8-03"', "name = 3", "valid string"),
        ("weight_bits = 4.0", "weight_bits = 1979-05-27", "weight_bits"),
        ('model = "', 'mod"el = "', "not a plan file"),
    ],
)
def test_wrong_entries_are_named(tmp_path, plan, old, new, says) -> None:
    text = dump_plan(plan)
    assert old in text
    with pytest.raises(ArtifactFormatError, match=says):
        parse_plan(text.replace(old, new, 1), tmp_path / "plan.toml")


def test_plan_without_layers_is_refused(tmp_path, plan) -> None:
    text = dump_plan(plan)
    with pytest.raises(ArtifactFormatError, match="no layers"):
        parse_plan(text[: text.index("[layers]")] + "[layers]\n", tmp_path)
