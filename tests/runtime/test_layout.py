import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mixdq.quant.qparams import activation_qparams
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.layout import (
    LayerLayout,
    check_values,
    join_parts,
    part_shapes,
    split_parts,
    tensor_specs,
    weight_shape_of,
)
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    num_bits=st.integers(2, 8),
    symmetric=st.booleans(),
    splits=st.lists(st.integers(1, 7), max_size=3),
    window=st.sampled_from([(), (1, 1), (3, 2)]),
)
def test_parts_survive_joining_and_splitting(
    num_bits: int, symmetric: bool, splits: list[int], window: tuple[int, ...]
) -> None:
    shape = (4, sum(splits) or 5, *window)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(num_bits))
    parts = quantize_weight(weight, num_bits, symmetric=symmetric, splits=splits)
    bits = LayerBits(weight=num_bits, activation=8)
    layout = LayerLayout(name="a", bits=bits, symmetric=symmetric, splits=tuple(splits))
    activation = [activation_qparams(ActivationRange(min=-1.0, max=2.0, batches=1), 8) for _ in parts]
    tensors = join_parts(parts, activation)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == tensor_specs(layout, shape)
    again = split_parts(layout, shape, tensors["weight"], tensors["weight_scale"], tensors.get("weight_zero_point"))
    for before, after in zip(parts, again, strict=True):
        assert after.shape == before.shape
        assert after.qparams.spec == before.qparams.spec
        assert torch.equal(after.codes.reshape(before.codes.shape), before.codes)
        assert torch.equal(after.qparams.scale, before.qparams.scale)
        assert (after.qparams.zero_point is None) == symmetric


def test_tensors_there_are() -> None:
    linear = LayerLayout(name="a", bits=LayerBits(weight=4, activation=8), bos=True)
    assert tensor_specs(linear, (6, 5)) == {
        "weight": ((6, 3), torch.uint8),
        "weight_scale": ((6, 1), torch.float32),
        "input_scale": ((1,), torch.float32),
        "input_zero_point": ((1,), torch.int32),
        "bos_input": ((5,), torch.float32),
        "bos_output": ((6,), torch.float32),
    }
    # 3 x 4 codes of 3 bits are 5 bytes, 5 x 4 are 8.
    conv = LayerLayout(name="a", bits=LayerBits(weight=3, activation=16), symmetric=False, splits=(3, 5))
    assert tensor_specs(conv, (6, 8, 2, 2)) == {
        "weight": ((6, 13), torch.uint8),
        "weight_scale": ((6, 2), torch.float32),
        "weight_zero_point": ((6, 2), torch.int32),
    }


def test_dynamic_layers_hold_no_scales_of_their_input() -> None:
    for bits in (LayerBits(weight=4, activation=8), LayerBits(weight=4, activation=16)):
        static = tensor_specs(LayerLayout(name="a", bits=bits), (6, 5))
        dynamic = tensor_specs(LayerLayout(name="a", bits=bits, dynamic=True), (6, 5))
        assert dynamic == {name: spec for name, spec in static.items() if not name.startswith("input")}


def test_parts_must_add_up_and_weights_must_be_quantized() -> None:
    layout = LayerLayout(name="a", bits=LayerBits(weight=8, activation=8), splits=(3, 4))
    with pytest.raises(ValueError, match="8 input channels"):
        part_shapes(layout, (6, 8, 1, 1))
    with pytest.raises(ValueError, match="no quantized layer"):
        LayerLayout(name="a", bits=LayerBits(weight=16, activation=8))
    with pytest.raises(ValueError, match="positive"):
        LayerLayout(name="a", bits=LayerBits(weight=8, activation=8), splits=(9, -1))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("weight_scale", [1.0, 0.0]),
        ("weight_scale", [1.0, -2.0]),
        ("input_scale", [float("nan"), 1.0]),
        ("input_scale", [float("inf"), 1.0]),
        ("bos_input", [float("nan"), 1.0]),
        ("bos_output", [float("-inf"), 1.0]),
    ],
)
def test_impossible_values_are_refused(name: str, values: list[float]) -> None:
    layout = LayerLayout(name="a", bits=LayerBits(weight=4, activation=8))
    check_values(layout, name, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=f"a.{name}"):
        check_values(layout, name, torch.tensor(values))


def test_zero_points_must_be_codes() -> None:
    layout = LayerLayout(name="a", bits=LayerBits(weight=4, activation=8))
    check_values(layout, "input_zero_point", torch.tensor([-128, 127], dtype=torch.int32))
    check_values(layout, "weight_zero_point", torch.tensor([-8, 7], dtype=torch.int32))
    with pytest.raises(ValueError, match="codes of 4 bits"):
        check_values(layout, "weight_zero_point", torch.tensor([-8, 8], dtype=torch.int32))


def test_weight_shape_of_reads_geometry_alone() -> None:
    for module in (nn.Linear(3, 5), nn.Conv2d(4, 6, (3, 2), groups=2)):
        assert weight_shape_of(module) == tuple(module.weight.shape)


FLOATS = LayerBits.parse("W8A8 float")


@pytest.mark.parametrize("splits", [(), (2, 3)])
def test_floats_have_no_zero_points_and_survive_joining(splits: tuple[int, ...]) -> None:
    layout = LayerLayout(name="a", bits=FLOATS, splits=splits)
    parts = quantize_weight(torch.randn(4, 5), 8, number="float", splits=splits)
    activation = [activation_qparams(ActivationRange(min=-1.0, max=2.0, batches=1), 8, "float") for _ in parts]
    tensors = join_parts(parts, activation)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == tensor_specs(layout, (4, 5))
    assert tensors.keys() == {"weight", "weight_scale", "input_scale"}
    again = split_parts(layout, (4, 5), tensors["weight"], tensors["weight_scale"], None)
    assert [part.qparams.spec for part in again] == [part.qparams.spec for part in parts]
    assert all(torch.equal(after.codes, before.codes) for before, after in zip(parts, again, strict=True))
    with pytest.raises(ValueError, match="no zero points"):
        LayerLayout(name="a", bits=FLOATS, symmetric=False)


def test_codes_of_floats_must_be_numbers() -> None:
    codes = torch.tensor([[0, -2, 126], [127, 0, -1]], dtype=torch.int8)
    check_values(LayerLayout(name="a", bits=FLOATS), "weight", codes[:1])
    check_values(LayerLayout(name="a", bits=LayerBits.parse("W8A8")), "weight", codes)
    with pytest.raises(ValueError, match=r"a\.weight: NaN"):
        check_values(LayerLayout(name="a", bits=FLOATS), "weight", codes)
