import torch
from diffusers import DiffusionPipeline

from mixdq.allocation.plans import uniform_plan
from mixdq.calibration.collect import calibrate
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec, generate
from mixdq.pipeline.layers import list_layers
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.workflow.denoiser import quantize_denoiser


def test_what_is_saved_was_converted_by_the_same_settings(tmp_path) -> None:
    pipe, spec = tiny_sdxl_pipeline(), GenerationSpec()
    family = find_family(pipe)
    table = list_layers(pipe, family, spec, model="m")
    record = calibrate(pipe, family, table, ["a dog"], spec)
    settings = {"backend": "reference", "symmetric": False, "rounding": "nearest", "activations": "dynamic"}
    receipt = quantize_denoiser(pipe.unet, uniform_plan(table, 4, 8), table, record, **settings)
    assert {layer.backend for layer in receipt.layers} == {"reference"}
    config = pipe.unet.config.quantization_config
    assert (config.backend, config.saved.symmetric, config.saved.activations) == ("reference", False, "dynamic")
    pipe.save_pretrained(tmp_path)
    opened = DiffusionPipeline.from_pretrained(tmp_path)
    opened.set_progress_bar_config(disable=True)
    assert torch.equal(generate(opened, ["a cat"], spec), generate(pipe, ["a cat"], spec))
