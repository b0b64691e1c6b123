from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline
from torch.nn.functional import conv2d, linear

from mixdq.calibration.collect import calibrate
from mixdq.errors import CalibrationError, NonFiniteError
from mixdq.metrics.psnr import psnr
from mixdq.metrics.sqnr import sqnr
from mixdq.metrics.ssim import ssim
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec, generate
from mixdq.pipeline.layers import list_layers
from mixdq.pipeline.trace import record_calls
from mixdq.sensitivity.scorer import TrialScorer
from mixdq.sensitivity.trials import Trial
from mixdq.testing import fingerprint, tiny_sd_pipeline, tiny_sdxl_pipeline
from mixdq.types.tensors import CalibrationRecord

PROMPTS = ["a cat", "a dog at sea", "a red boat"]
CONTENT = "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
TEXT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
QUALITY = "down_blocks.0.resnets.0.conv1"


def scorer(pipe: DiffusionPipeline, spec: GenerationSpec) -> TrialScorer:
    family = find_family(pipe)
    table = list_layers(pipe, family, spec, model="tiny")
    return TrialScorer(
        pipe=pipe,
        denoiser=pipe.unet,
        layers={layer.name: layer for layer in table},
        record=calibrate(pipe, family, table, PROMPTS, spec),
        trace=record_calls(pipe, family, PROMPTS, spec),
        ssim_window=11,
        symmetric=True,
        rounding="nearest",
    )


def quantized_by_hand(weight: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Min-max, symmetric, per output channel, written out."""
    top = 2 ** (num_bits - 1) - 1
    step = weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.ndim - 1)) / top
    return (weight / step).round().clamp(-top, top) * step


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
@pytest.mark.parametrize("build", [tiny_sdxl_pipeline, tiny_sd_pipeline])
def test_picture_scores_are_those_of_generating_with_the_layer_quantized(
    build, guidance_scale: float, steps: int
) -> None:
    pipe = build()
    spec = GenerationSpec(steps=steps, guidance_scale=guidance_scale)
    score = scorer(pipe, spec)
    before = fingerprint(pipe.unet)
    found = score(Trial(layer=CONTENT, role="weight", num_bits=2, metrics=("ssim", "psnr")))
    assert fingerprint(pipe.unet) == before
    float_pictures = generate(pipe, PROMPTS, spec)
    module = pipe.unet.get_submodule(CONTENT)
    with torch.no_grad():
        module.weight.copy_(quantized_by_hand(module.weight, 2))
    pictures = generate(pipe, PROMPTS, spec)
    assert found[0].value == pytest.approx(ssim(float_pictures, pictures), abs=1e-5)
    assert found[1].value == pytest.approx(psnr(float_pictures, pictures), abs=1e-3)
    assert found[0].value < 1.0


def test_output_scores_compare_the_denoiser_from_the_recorded_inputs_of_every_step() -> None:
    pipe = tiny_sdxl_pipeline()
    score = scorer(pipe, GenerationSpec(steps=3))
    (found,) = score(Trial(layer=QUALITY, role="weight", num_bits=4, metrics=("sqnr",)))
    module = pipe.unet.get_submodule(QUALITY)
    with torch.no_grad():
        module.weight.copy_(quantized_by_hand(module.weight, 4))
        by_hand = [sqnr(call.output, pipe.unet(*call.args, **call.kwargs)[0]) for call in score.trace.calls]
    assert found.value == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-3)


@pytest.mark.parametrize("name", [QUALITY, CONTENT, TEXT, "up_blocks.0.resnets.1.conv_shortcut"])
def test_activations_are_rounded_on_their_calibrated_grid_part_by_part(name: str) -> None:
    pipe = tiny_sdxl_pipeline()
    score = scorer(pipe, GenerationSpec())
    layer, ranges = score.layers[name], score.record.ranges[name]
    (found,) = score(Trial(layer=name, role="activation", num_bits=4, metrics=("sqnr",)))
    module = pipe.unet.get_submodule(name)

    def rounded(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / 15
        zero = round(-8 - low / step)
        return ((x / step).round() + zero).clamp(-8, 7).sub(zero) * step

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        first, rest = (x[:, :1], x[:, 1:]) if layer.bos else (x[:, :0], x)
        parts = rest.split(list(layer.input_splits), dim=1) if layer.input_splits else [rest]
        x = torch.cat(
            [rounded(part, one.min, one.max) for part, one in zip(parts, ranges, strict=True)],
            dim=1 if layer.input_splits else 0,
        )
        x = torch.cat([first, x], dim=1) if layer.bos else x
        if layer.op == "linear":
            return linear(x, module.weight, module.bias)
        return conv2d(x, module.weight, module.bias, module.stride, module.padding)

    module.forward = by_hand
    (call,) = score.trace.calls
    with torch.no_grad():
        expected = sqnr(call.output, pipe.unet(*call.args, **call.kwargs)[0])
    assert found.value == pytest.approx(expected, abs=0.05)


def test_a_trial_that_gives_nan_names_its_layer_and_leaves_the_model() -> None:
    pipe = tiny_sdxl_pipeline()
    score = scorer(pipe, GenerationSpec())
    call = score.trace.calls[0]
    broken = replace(call, output=call.output * float("nan"))
    trace = replace(score.trace, batches=(replace(score.trace.batches[0], calls=(broken,)),))
    before = fingerprint(pipe.unet)
    with pytest.raises(NonFiniteError, match="with its weight at 4 bits") as caught:
        replace(score, trace=trace)(Trial(layer=QUALITY, role="weight", num_bits=4, metrics=("sqnr",)))
    assert caught.value.where == QUALITY
    assert fingerprint(pipe.unet) == before


def test_a_record_of_another_model_is_refused() -> None:
    score = replace(scorer(tiny_sdxl_pipeline(), GenerationSpec()), record=CalibrationRecord(ranges={}))
    with pytest.raises(CalibrationError, match=QUALITY):
        score(Trial(layer=QUALITY, role="activation", num_bits=8, metrics=("sqnr",)))
