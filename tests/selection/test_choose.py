from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from mixdq.calibration.collect import calibrate
from mixdq.errors import CalibrationError, ConfigError, NonFiniteError
from mixdq.metrics.ssim import ssim
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.pipeline.trace import record_calls, regenerate
from mixdq.quant.simulate_plan import simulated_plan
from mixdq.selection.choose import choose
from mixdq.testing import fingerprint, tiny_sdxl_pipeline
from mixdq.types.plan import BitPlan, LayerBits
from mixdq.types.tensors import CalibrationRecord

PIPE = tiny_sdxl_pipeline()
FAMILY = find_family(PIPE)
SPEC = GenerationSpec(steps=2)
PROMPTS = ["a cat", "a dog at sea"]
TABLE = list_layers(PIPE, FAMILY, SPEC, model="tiny")
RECORD = calibrate(PIPE, FAMILY, TABLE, PROMPTS, SPEC)


def uniform(weight: int, activation: int, name: str | None = None) -> BitPlan:
    bits = LayerBits(weight=weight, activation=activation)
    return BitPlan(name=name or str(bits), layers={layer.name: bits for layer in TABLE})


def chosen(plans: Sequence[BitPlan], **options: object) -> tuple[BitPlan, list[tuple[str, float]]]:
    return choose(PIPE, FAMILY, TABLE, RECORD, plans, PROMPTS, SPEC, **options)


def test_the_plan_with_the_best_pictures_wins_wherever_it_stands() -> None:
    poor, fair, good = uniform(2, 8), uniform(4, 8), uniform(8, 8)
    for plans in ((poor, fair, good), (good, poor, fair)):
        best, scores = chosen(plans)
        assert best is good
        assert [name for name, _ in scores] == [plan.name for plan in plans]
        by_name = dict(scores)
        assert by_name["W2A8"] < by_name["W4A8"] < by_name["W8A8"] < 1.0


def test_a_score_is_that_of_the_whole_plan_simulated() -> None:
    plan = uniform(4, 8)
    _, [(_, score)] = chosen([plan])
    trace = record_calls(PIPE, FAMILY, PROMPTS, SPEC)
    with simulated_plan(PIPE.unet, TABLE, plan.layers, RECORD):
        assert score == ssim(trace.pictures, regenerate(PIPE, trace))


def test_with_dynamic_activations_so_are_the_simulated_ones() -> None:
    plan = uniform(4, 4)
    _, [(_, score)] = chosen([plan], activations="dynamic")
    trace = record_calls(PIPE, FAMILY, PROMPTS, SPEC)
    with simulated_plan(PIPE.unet, TABLE, plan.layers, replace(RECORD, ranges={}), activations="dynamic"):
        assert score == ssim(trace.pictures, regenerate(PIPE, trace))
    assert score != chosen([plan])[1][0][1]


def test_a_plan_that_changes_nothing_has_the_float_pictures() -> None:
    _, [(_, score)] = chosen([uniform(16, 16)])
    assert score == 1.0


def test_of_equals_the_earlier_wins() -> None:
    best, scores = chosen([uniform(2, 8), uniform(4, 8, "first"), uniform(4, 8, "second")])
    assert best.name == "first"
    assert scores[1][1] == scores[2][1]


@dataclass(frozen=True)
class Distance:
    """A metric of which less is better."""

    name: str = "distance"
    unit: str = ""
    higher_is_better: bool = False

    def per_picture(self, reference: Tensor, candidate: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        assert prompts == PROMPTS
        return (reference - candidate).abs().flatten(1).mean(1).double()

    def __call__(self, reference: Tensor, candidate: Tensor, prompts: Sequence[str] | None = None) -> float:
        return float(self.per_picture(reference, candidate, prompts).mean())


def test_a_metric_may_be_given_whole_and_its_direction_counts() -> None:
    best, scores = chosen([uniform(2, 8), uniform(8, 8), uniform(4, 8)], metric=Distance())
    assert best.name == "W8A8"
    assert dict(scores)["W8A8"] < dict(scores)["W4A8"]


def test_the_model_is_given_back_as_it_was() -> None:
    before = fingerprint(PIPE.unet)
    chosen([uniform(2, 8)])
    assert fingerprint(PIPE.unet) == before

    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen([uniform(2, 8)], progress=stop)
    with pytest.raises(CalibrationError):
        choose(PIPE, FAMILY, TABLE, CalibrationRecord(ranges={}), [uniform(4, 8)], PROMPTS, SPEC)
    assert fingerprint(PIPE.unet) == before


def test_unknown_metrics_and_no_plans_are_refused() -> None:
    with pytest.raises(ConfigError, match="metric = 'lpipz'"):
        chosen([uniform(8, 8)], metric="lpipz")
    with pytest.raises(ConfigError, match="no plan to choose from"):
        chosen([])


def test_a_plan_whose_pictures_are_nan_is_named_and_so_is_a_model_that_gives_nan_by_itself() -> None:
    def spoil(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * (torch.nan if "forward" in vars(module) else 1.0)

    pipe = tiny_sdxl_pipeline()
    # NaN only while a plan is simulated, which gives the layer a forward of its own.
    pipe.unet.conv_out.register_forward_hook(spoil)
    with pytest.raises(NonFiniteError, match="plan W8A8") as caught:
        choose(pipe, FAMILY, TABLE, RECORD, [uniform(8, 8)], PROMPTS, SPEC)
    assert caught.value.where == "W8A8"
    with torch.no_grad():
        pipe.vae.decoder.layers[0].weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="picture 0"):
        choose(pipe, FAMILY, TABLE, RECORD, [uniform(8, 8)], PROMPTS, SPEC)
