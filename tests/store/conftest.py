import pytest
import torch

from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import BitPlan, Budget, LayerBits, SolverFacts
from mixdq.types.scores import Score, SensitivityTable
from mixdq.types.tensors import ActivationRange, CalibrationRecord


@pytest.fixture
def plan() -> BitPlan:
    return BitPlan(
        name="W4A8-03",
        layers={
            "up.0.attn2.to_k": LayerBits(weight=4, activation=8),
            'odd "name" \\ with = ü': LayerBits(weight=16, activation=16),
        },
        budget=Budget(weight_bits=4.0, keep=("conv_in",)),
        solver=SolverFacts(solver="HiGHS", objective="raw", values={"weight_content": 0.1 + 0.2, "x": float("inf")}),
        origin={"model": "ab" * 32},
    )


@pytest.fixture
def table() -> LayerTable:
    common = {"group": "content", "input_numel": 8, "macs": 64}
    return LayerTable(
        model="tiny",
        family="sdxl",
        digest="cd" * 32,
        layers=(
            LayerSpec(name="a.b", op="linear", weight_shape=(2, 4), bos=True, **common),
            LayerSpec(name="c", op="conv2d", weight_shape=(2, 4, 3, 3), input_splits=(1, 3), **common),
        ),
    )


@pytest.fixture
def sensitivity() -> SensitivityTable:
    rows = [
        ("a.b", "weight", 4, "ssim", 0.1),
        ("a,b", "activation", 8, "sqnr", float("inf")),
        ("c", "weight", 2, "sqnr", -1e-17),
    ]
    scores = tuple(Score(layer=n, role=r, num_bits=b, metric=m, value=v) for n, r, b, m, v in rows)
    return SensitivityTable(scores=scores, origin={"model": "ab" * 32, "layers": "cd" * 32})


@pytest.fixture
def record() -> CalibrationRecord:
    return CalibrationRecord(
        ranges={
            "z": (ActivationRange(min=-0.1, max=1 / 3, batches=3),),
            "a": (ActivationRange(min=0.0, max=1.0, batches=1), ActivationRange(min=-5.0, max=7.5, batches=1)),
        },
        bos_input=torch.arange(4.0),
        bos_outputs={"z": torch.ones(2), "a": torch.full((3,), 0.5, dtype=torch.float16)},
        origin={"model": "ab" * 32},
    )
