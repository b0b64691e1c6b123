import pytest
import torch

from mixdq.errors import ConfigError
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.gradient import differentiable
from mixdq.pipeline.trace import record_calls, regenerate_batch
from mixdq.testing import fingerprint, tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("build", [tiny_sdxl_pipeline, tiny_sd_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline])
def test_pictures_have_the_gradient_that_differences_show(build, steps: int) -> None:
    """Through the decoder and every step; against the pictures of two models, a bias a little higher and lower."""
    pipe = build()
    family, spec = find_family(pipe), GenerationSpec(steps=steps, height=16, width=16)
    denoiser = family.denoiser(pipe)
    trace = record_calls(pipe, family, ["a cat", "a dog"], spec)
    (batch,) = trace.batches
    layer = next(part for part in denoiser.modules() if isinstance(part, torch.nn.Linear) and part.bias is not None)
    shift = torch.zeros_like(layer.bias, requires_grad=True)
    handle = layer.register_forward_hook(lambda _, __, output: output + shift)
    v = torch.randn(trace.pictures.shape, generator=torch.Generator().manual_seed(0))
    with differentiable(pipe, denoiser):
        pictures = regenerate_batch(pipe, spec, batch, gradient=True)
        (gradient,) = torch.autograd.grad(pictures, shift, v)
    handle.remove()
    assert torch.equal(pictures, trace.pictures)
    direction = gradient / gradient.norm()
    ends = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            layer.bias.add_(sign * 3e-2 * direction)
            ends.append((regenerate_batch(pipe, spec, batch).double() * v).sum())
            layer.bias.sub_(sign * 3e-2 * direction)
    assert float(ends[0] - ends[1]) / 6e-2 == pytest.approx(float(gradient.norm()), rel=0.1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_model_is_given_back_as_it_was(checkpointing: bool) -> None:
    pipe = tiny_sdxl_pipeline()
    pipe.unet.conv_in.weight.requires_grad_(False)
    before = [fingerprint(module) for module in (pipe.unet, pipe.vae)]
    with differentiable(pipe, pipe.unet, checkpointing=checkpointing):
        assert pipe.unet.is_gradient_checkpointing == pipe.vae.is_gradient_checkpointing == checkpointing
        assert not any(parameter.requires_grad for parameter in [*pipe.unet.parameters(), *pipe.vae.parameters()])
    assert [fingerprint(module) for module in (pipe.unet, pipe.vae)] == before
    assert not pipe.unet.is_gradient_checkpointing


def test_a_denoiser_that_cannot_checkpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_sdxl_pipeline()
    monkeypatch.setattr(type(pipe.unet), "_supports_gradient_checkpointing", False)
    with (
        pytest.raises(ConfigError, match=r"checkpointing = true: UNet2DConditionModel does not know how"),
        differentiable(pipe, pipe.unet, checkpointing=True),
    ):
        pass
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())
