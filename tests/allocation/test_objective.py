import math

import pytest

from mixdq.allocation.objective import METRIC_OF, layer_scores
from mixdq.errors import PlanError
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.scores import Score, SensitivityTable


def table() -> LayerTable:
    common = {"op": "linear", "weight_shape": (2, 2), "input_numel": 2, "macs": 4}
    return LayerTable(
        model="m",
        family="f",
        digest="d",
        layers=(LayerSpec(name="c", group="content", **common), LayerSpec(name="q", group="quality", **common)),
    )


def measured(*rows: tuple[str, str, int, float]) -> SensitivityTable:
    scores = [Score(layer=n, role="weight", num_bits=b, metric=m, value=v) for n, m, b, v in rows]
    return SensitivityTable(scores=tuple(scores), origin={})


ALL = measured(("c", "ssim", 4, 0.75), ("c", "ssim", 8, 1.0), ("q", "sqnr", 4, 20.0), ("q", "sqnr", 8, math.inf))


def ask(sensitivity=ALL, objective="raw", widths=(4, 8), metric_of=METRIC_OF, lone=False, role="weight"):
    every = {"c": widths, "q": widths}
    return layer_scores(table(), sensitivity, role, every, metric_of, objective, lone_widths=lone)


def test_raw_takes_each_group_by_its_metric_as_measured() -> None:
    assert ask() == {"c": {4: 0.75, 8: 1.0}, "q": {4: 20.0, 8: math.inf}}


def test_linear_takes_the_loss_negated() -> None:
    assert ask(objective="linear") == {"c": {4: -0.25, 8: 0.0}, "q": {4: -0.01, 8: 0.0}}


@pytest.mark.parametrize(("objective", "content", "quality"), [("raw", 1.0, math.inf), ("linear", 0.0, 0.0)])
def test_sixteen_bits_lose_nothing_unmeasured(objective, content, quality) -> None:
    assert ask(objective=objective, widths=(16,), lone=True) == {"c": {16: content}, "q": {16: quality}}


def test_every_missing_score_is_named() -> None:
    with pytest.raises(PlanError, match="c: no ssim of its weight at 2 bits") as caught:
        ask(widths=(2, 4, 8))
    assert len(caught.value.disagreements) == 2
    with pytest.raises(PlanError) as caught:
        ask(role="activation")
    assert len(caught.value.disagreements) == 4


def test_scores_of_another_model_are_refused() -> None:
    with pytest.raises(PlanError, match="stranger: scored, but not in the model"):
        ask(measured(("stranger", "ssim", 4, 1.0)), widths=())


def test_lone_width_needs_no_score_unless_asked_for() -> None:
    assert ask(widths=(3,)) == {"c": {3: 0.0}, "q": {3: 0.0}}
    with pytest.raises(PlanError):
        ask(widths=(3,), lone=True)


def test_unknown_objective_and_metric_without_loss_are_refused() -> None:
    with pytest.raises(ValueError, match="raw or linear"):
        ask(objective="cubic")
    scores = measured(("c", "clip", 4, 1.0), ("q", "clip", 4, 1.0))
    with pytest.raises(ValueError, match="not clip"):
        ask(scores, "linear", (4,), dict.fromkeys(METRIC_OF, "clip"))
