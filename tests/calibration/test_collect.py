from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from mixdq.calibration.collect import calibrate, input_parts
from mixdq.errors import BosNotConstantError, ConfigError, EmptyRangeError, NonFiniteError
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.pipeline.trace import record_calls, replay
from mixdq.testing import fingerprint, tiny_sd_pipeline, tiny_sdxl_pipeline
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.tensors import CalibrationRecord

PROMPTS = ["a cat", "a dog at sea", "a red boat"]
ONE_STEP = GenerationSpec()


def listed(pipe: DiffusionPipeline) -> LayerTable:
    return list_layers(pipe, find_family(pipe), ONE_STEP, model="tiny")


def calibrated(pipe: DiffusionPipeline, spec: GenerationSpec = ONE_STEP, **options: object) -> CalibrationRecord:
    return calibrate(pipe, find_family(pipe), listed(pipe), PROMPTS, spec, **options)


def inputs_of_replay(pipe: DiffusionPipeline, spec: GenerationSpec, batch_size: int) -> dict[str, list[Tensor]]:
    """Every layer's inputs, call by call, by other means than the calibration's."""
    calls = record_calls(pipe, find_family(pipe), PROMPTS, spec, batch_size=batch_size).calls
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    handles = [
        pipe.unet.get_submodule(layer.name).register_forward_pre_hook(
            lambda _, args, name=layer.name: inputs[name].append(args[0])
        )
        for layer in listed(pipe)
    ]
    for call in calls:
        replay(pipe.unet, call)
    for handle in handles:
        handle.remove()
    return inputs


@pytest.mark.parametrize(
    ("build", "guidance_scale"), [(tiny_sdxl_pipeline, 0.0), (tiny_sdxl_pipeline, 2.0), (tiny_sd_pipeline, 2.0)]
)
def test_ranges_are_the_moving_average_over_every_call_of_every_step(build, guidance_scale: float) -> None:
    pipe = build()
    spec = GenerationSpec(steps=2, guidance_scale=guidance_scale)
    record = calibrated(pipe, spec, batch_size=2)
    inputs = inputs_of_replay(pipe, spec, batch_size=2)
    for layer in listed(pipe):
        batches = inputs[layer.name]
        if layer.bos:
            batches = [x[:, 1:] for x in batches]
        parts = [x.split(list(layer.input_splits), dim=1) if layer.input_splits else (x,) for x in batches]
        assert len(record.ranges[layer.name]) == len(parts[0])
        for found, part in zip(record.ranges[layer.name], zip(*parts, strict=True), strict=True):
            low, high = float(part[0].min()), float(part[0].max())
            for batch in part[1:]:
                low, high = 0.95 * low + 0.05 * float(batch.min()), 0.95 * high + 0.05 * float(batch.max())
            assert (found.min, found.max) == (pytest.approx(low), pytest.approx(high))
            assert found.batches == len(batches)


def test_text_layers_are_measured_without_the_first_token() -> None:
    pipe = tiny_sdxl_pipeline(bos_outlier=500.0)
    record = calibrated(pipe)
    assert record.bos_input is not None
    assert record.bos_input.abs().max() > 400
    for layer in listed(pipe):
        if layer.bos:
            (found,) = record.ranges[layer.name]
            assert max(-found.min, found.max) < 10


@pytest.mark.parametrize("build", [tiny_sdxl_pipeline, tiny_sd_pipeline])
def test_bos_rows_are_what_the_layers_give_for_any_prompt(build) -> None:
    pipe = build()
    record = calibrated(pipe)
    embedding = find_family(pipe).encode(pipe, ["something else"], 0.0)["prompt_embeds"].detach()
    assert torch.allclose(record.bos_input, embedding[0, 0])
    names = [layer.name for layer in listed(pipe) if layer.bos]
    assert list(record.bos_outputs) == names
    for name in names:
        with torch.no_grad():
            expected = pipe.unet.get_submodule(name)(embedding)[0, 0]
        assert torch.allclose(record.bos_outputs[name], expected, rtol=1e-5, atol=1e-5)


def test_joined_inputs_have_a_range_for_each_part() -> None:
    layer = LayerSpec(
        name="s", op="conv2d", group="quality", weight_shape=(2, 3, 1, 1), input_numel=3, macs=6, input_splits=(1, 2)
    )
    x = torch.arange(3.0).reshape(1, 3, 1, 1)
    assert [part.flatten().tolist() for part in input_parts(layer, x)] == [[0.0], [1.0, 2.0]]


def test_calibrating_twice_gives_the_same_record() -> None:
    first, second = (calibrated(tiny_sdxl_pipeline(), GenerationSpec(steps=2)) for _ in range(2))
    assert first.ranges == second.ranges
    assert first.origin == second.origin
    assert torch.equal(first.bos_input, second.bos_input)


@pytest.mark.parametrize("estimator", ["minmax", "moving_average", "percentile", "mse"])
def test_every_estimator_stays_within_the_extremes(estimator: str) -> None:
    pipe = tiny_sdxl_pipeline()
    extremes = calibrated(pipe, estimator="minmax").ranges
    for name, ranges in calibrated(pipe, estimator=estimator).ranges.items():
        for found, extreme in zip(ranges, extremes[name], strict=True):
            assert extreme.min <= found.max
            assert found.min <= extreme.max
            # One bin of a histogram may lie beyond.
            slack = 0.01 * (extreme.max - extreme.min)
            assert extreme.min - slack <= found.min <= found.max <= extreme.max + slack


def test_an_unknown_estimator_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="expected one of minmax, moving_average, mse, percentile"):
        calibrated(tiny_sdxl_pipeline(), estimator="median")


def test_an_encoder_without_bos_is_refused() -> None:
    pipe = tiny_sdxl_pipeline(text_encoders=1)
    tokenizer = pipe.tokenizer_2
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", tokenizer.eos_token_id)]
    )
    before = fingerprint(pipe.unet)
    with pytest.raises(BosNotConstantError, match="differs from prompt to prompt"):
        calibrate(pipe, find_family(pipe), listed(pipe), ["cat", "dog"], ONE_STEP)
    assert fingerprint(pipe.unet) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_weight_is_named_with_its_own_layer(value: float) -> None:
    pipe = tiny_sdxl_pipeline()
    table = listed(pipe)
    name = "down_blocks.0.resnets.0.conv1"
    with torch.no_grad():
        pipe.unet.get_submodule(name).weight[0, 0, 0, 0] = value
    with pytest.raises(NonFiniteError, match="its weight holds NaN or infinity") as caught:
        calibrate(pipe, find_family(pipe), table, PROMPTS, ONE_STEP)
    assert caught.value.where == name


def test_a_broken_activation_is_named_with_the_first_layer_that_reads_it() -> None:
    pipe = tiny_sdxl_pipeline()
    table = listed(pipe)
    with torch.no_grad():
        pipe.unet.down_blocks[0].resnets[0].norm2.weight.fill_(float("nan"))
    before = fingerprint(pipe.unet)
    with pytest.raises(NonFiniteError) as caught:
        calibrate(pipe, find_family(pipe), table, PROMPTS, ONE_STEP)
    assert caught.value.where == "down_blocks.0.resnets.0.conv2"
    assert fingerprint(pipe.unet) == before


def test_a_layer_that_never_runs_has_no_range() -> None:
    pipe = tiny_sdxl_pipeline()
    table = listed(pipe)
    pipe.unet.spare = torch.nn.Linear(2, 2)
    spare = LayerSpec(name="spare", op="linear", group="quality", weight_shape=(2, 2), input_numel=2, macs=4)
    with pytest.raises(EmptyRangeError, match="spare"):
        calibrate(pipe, find_family(pipe), replace(table, layers=(*table.layers, spare)), PROMPTS, ONE_STEP)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_given_back_as_it_was(error: type[BaseException]) -> None:
    pipe = tiny_sdxl_pipeline()
    before = fingerprint(pipe.unet)
    calibrated(pipe)
    assert fingerprint(pipe.unet) == before

    def fail(done: int, total: int, what: str) -> None:
        if done:
            raise error

    with pytest.raises(error):
        calibrated(pipe, progress=fail)
    assert fingerprint(pipe.unet) == before
