from dataclasses import replace

import pytest
import torch
from torch import nn

from mixdq.conversion.check import SHOWN, check_denoiser, check_plan, plan_error
from mixdq.errors import NonFiniteError, PlanError
from mixdq.types.layers import LayerTable
from mixdq.types.plan import BitPlan, LayerBits
from mixdq.types.tensors import CalibrationRecord


def plan_of(**bits: str) -> BitPlan:
    return BitPlan(name="p", layers={name.replace("__", "."): LayerBits.parse(text) for name, text in bits.items()})


GOOD = plan_of(conv="W8A8", block__to_k="W4A16", join="W2A4", out="W16A16")


def test_a_plan_that_fits_passes(table: LayerTable, record: CalibrationRecord) -> None:
    check_plan(GOOD, table, record)


def test_every_disagreement_is_told_at_once(table: LayerTable, record: CalibrationRecord) -> None:
    plan = plan_of(conv="W16A8", block__to_k="W4A8", join="W8A8", elsewhere="W8A8")
    less = replace(record, ranges={"join": record.ranges["conv"]}, bos_outputs={})
    with pytest.raises(PlanError) as error:
        check_plan(plan, table, less)
    assert list(error.value.disagreements) == [
        "block.to_k: W4A8 needs 1 calibrated range(s), the record has 0",
        "block.to_k: reads the text embedding, and the record holds no BOS row for it; calibrate again",
        "conv: W16A8 quantizes the input of a floating-point weight, which no kernel runs; use W16A16",
        "elsewhere: the model has no such layer",
        "join: W8A8 needs 2 calibrated range(s), the record has 1",
        "out: the plan says nothing of it",
    ]
    assert all(complaint in str(error.value) for complaint in error.value.disagreements)


def test_weight_only_layers_need_no_ranges_but_text_layers_need_their_row(
    table: LayerTable, record: CalibrationRecord
) -> None:
    plan = plan_of(conv="W4A16", block__to_k="W4A16", join="W4A16", out="W4A16")
    check_plan(plan, table, replace(record, ranges={}))
    with pytest.raises(PlanError, match="no BOS row"):
        check_plan(plan, table, CalibrationRecord(ranges={}))


def test_dynamic_activations_need_no_ranges_but_text_layers_need_their_row(
    table: LayerTable, record: CalibrationRecord
) -> None:
    plan = plan_of(conv="W4A8", block__to_k="W4A8", join="W8A4", out="W4A16")
    check_plan(plan, table, replace(record, ranges={}), activations="dynamic")
    with pytest.raises(PlanError, match="no BOS row"):
        check_plan(plan, table, CalibrationRecord(ranges={}), activations="dynamic")


def test_bos_rows_of_another_shape_or_not_finite_are_named(table: LayerTable, record: CalibrationRecord) -> None:
    with pytest.raises(PlanError, match=r"BOS output \(3,\), expected \(6,\)"):
        check_plan(GOOD, table, replace(record, bos_outputs={"block.to_k": torch.zeros(3)}))
    with pytest.raises(PlanError, match="BOS state holds NaN"):
        check_plan(GOOD, table, replace(record, bos_input=torch.full((5,), torch.nan)))


def test_another_denoiser_is_refused_layer_by_layer(toy: nn.Module, table: LayerTable) -> None:
    toy.conv = nn.Conv2d(3, 6, 1)
    toy.join = nn.Identity()
    del toy.block["to_k"]
    with pytest.raises(PlanError) as error:
        check_denoiser(toy, GOOD, table)
    assert list(error.value.disagreements) == [
        "block.to_k: the denoiser has no such layer",
        "conv: weight (6, 3, 1, 1), expected (6, 3, 3, 3)",
        "join: expected a float Conv2d, found Identity",
    ]


def test_layers_left_in_floating_point_are_not_looked_at(toy: nn.Module, table: LayerTable) -> None:
    toy.out = nn.Identity()
    assert list(check_denoiser(toy, GOOD, table)) == ["conv", "block.to_k", "join"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_weight_is_named(toy: nn.Module, table: LayerTable, value: float) -> None:
    with torch.no_grad():
        toy.join.weight[1, 2] = value
    with pytest.raises(NonFiniteError, match="join") as error:
        check_denoiser(toy, GOOD, table)
    assert error.value.where == "join"


def test_long_lists_are_cut_in_the_message_only() -> None:
    error = plan_error("no", [f"{i:03}" for i in range(100)])
    assert len(error.disagreements) == 100
    assert f"and {100 - SHOWN} more" in str(error)


def test_floats_are_for_linear_layers(table: LayerTable, record: CalibrationRecord) -> None:
    names = [spec.name for spec in table]
    widths = ["W8A8", "W8A8 float", "W8A8", "W8A8 float"]
    plan = BitPlan(name="p", layers=dict(zip(names, map(LayerBits.parse, widths), strict=True)))
    check_plan(plan, table, record)
    every = BitPlan(name="p", layers=dict.fromkeys(names, LayerBits.parse("W8A8 float")))
    with pytest.raises(PlanError, match="a Conv2d takes W8A8") as error:
        check_plan(every, table, record)
    assert [text.split(":")[0] for text in error.value.disagreements] == ["conv", "join"]
