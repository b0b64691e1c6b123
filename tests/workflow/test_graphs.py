import pytest
import torch
from torch import nn

import mixdq
from mixdq.errors import ConfigError, UnsupportedModelError
from mixdq.runtime.graphs import Graphs, use_graphs
from mixdq.testing import tiny_flux_pipeline, tiny_sdxl_pipeline
from mixdq.types.plan import BitPlan, LayerBits

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("model", [tiny_sdxl_pipeline, lambda: nn.Linear(2, 2)])
def test_without_a_gpu_they_are_refused(model) -> None:
    with pytest.raises(ConfigError, match="PyTorch sees none here"):
        mixdq.use_cuda_graphs(model())


@pytest.mark.parametrize("model", ["stabilityai/sdxl-turbo", None])
def test_what_is_no_model_is_refused(model) -> None:
    with pytest.raises(UnsupportedModelError, match="has neither a unet nor a transformer"):
        mixdq.use_cuda_graphs(model)


@pytest.mark.parametrize(("make", "name"), [(tiny_sdxl_pipeline, "unet"), (tiny_flux_pipeline, "transformer")])
def test_they_are_removed_from_a_pipeline_or_a_denoiser(make, name) -> None:
    pipe = make()
    denoiser = getattr(pipe, name)
    for model in (pipe, denoiser):
        use_graphs(denoiser)
        assert isinstance(denoiser.forward, Graphs)
        mixdq.remove_cuda_graphs(model)
        assert not isinstance(denoiser.forward, Graphs)
        mixdq.remove_cuda_graphs(model)


@on_a_gpu
@pytest.mark.parametrize("quantized", [False, True])
def test_a_pipeline_on_a_gpu_draws_the_same_with_them(quantized, caplog) -> None:
    pipe = tiny_sdxl_pipeline().to("cuda")
    if quantized:
        table, record = mixdq.inspect(pipe), mixdq.calibrate(pipe, ["a red apple", "a blue bird"])
        plan = BitPlan(name="uniform", layers={spec.name: LayerBits.parse("W8A8") for spec in table})
        mixdq.apply(pipe, plan, record, table, backend="cuda")
    prompts = ["a red apple", "a boat", "a boat", "two cats"]
    expected = mixdq.generate(pipe, prompts, steps=4)
    mixdq.use_cuda_graphs(pipe)
    for _ in range(3):
        torch.testing.assert_close(mixdq.generate(pipe, prompts, steps=4), expected, atol=1e-3, rtol=0)
    assert all(call.replay is not None for call in pipe.unet.forward._calls)
    assert not [record for record in caplog.records if record.name == "mixdq.runtime.graphs"]
    mixdq.remove_cuda_graphs(pipe)
