import shutil

import pytest

from mixdq.store.json_file import read_json
from mixdq.store.plan_file import read_plan, write_plan
from mixdq.workflow.reporting import EVALUATION
from mixdq.workflow.settings import evaluation_prompts
from mixdq.workflow.source import layers_of, numbers_of, run_of, settings_of


def test_plan_in_a_run_knows_its_settings_and_layers(run) -> None:
    for plan in (run.paths.plan, run.paths.plans / "plan-01.toml"):
        assert run_of(plan) == run.paths
        assert settings_of(plan) == run.config
        assert [layer.name for layer in layers_of(plan)] == list(read_plan(plan).layers)


def test_plan_that_stands_alone_knows_neither(run, tmp_path_factory) -> None:
    alone = tmp_path_factory.mktemp("alone") / "a" / "b" / "plan.toml"
    alone.parent.mkdir(parents=True)
    shutil.copy(run.paths.plan, alone)
    assert run_of(alone) is settings_of(alone) is layers_of(alone) is None
    assert numbers_of(alone, run.config, ["a"]) is None


def test_numbers_are_of_the_same_prompts_where_the_run_has_them(run) -> None:
    prompts = evaluation_prompts(run.config)
    content = read_json(run.variant.evaluation, EVALUATION).content
    first = numbers_of(run.paths.plan, run.config, prompts[:1])
    assert first.ssim == content["per_picture"]["ssim"][0]
    assert first.sqnr_db == content["per_picture"]["sqnr"][0]
    for others in (prompts, ["something else"]):
        whole = numbers_of(run.paths.plan, run.config, others)
        assert whole.ssim == pytest.approx(content["ssim"])
        assert whole.sqnr_db == pytest.approx(content["sqnr_db"])


def other(run, section: str, **values: object):
    part = getattr(run.config, section).model_copy(update=values)
    return run.config.model_copy(update={section: part})


def test_numbers_of_pictures_that_were_made_otherwise_are_not_taken(run) -> None:
    prompts = evaluation_prompts(run.config)
    for config in (other(run, "generation", steps=2), other(run, "conversion", activations="dynamic")):
        assert numbers_of(run.paths.plan, config, prompts) is None
    assert numbers_of(run.paths.plan, other(run, "conversion", backend="reference"), prompts) is not None


def test_numbers_of_another_plan_are_not_taken(run) -> None:
    prompts = evaluation_prompts(run.config)
    assert numbers_of(run.paths.plans / "plan-01.toml", run.config, prompts) is None
    plan = read_plan(run.paths.plan)
    changed = {**plan.layers, "conv_in": plan.layers["conv_out"]}
    write_plan(run.paths.plan, type(plan)(name="mine", layers=changed))
    assert numbers_of(run.paths.plan, run.config, prompts) is None
