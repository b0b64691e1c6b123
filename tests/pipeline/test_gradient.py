import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor

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


def narrow_pipeline() -> StableDiffusionXLPipeline:
    """Return a float16 pipeline whose decoder is to be widened, as SDXL's is."""
    pipe = tiny_sdxl_pipeline()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=2,
            force_upcast=True,
        )
    pipe.register_modules(vae=vae.eval())
    return pipe.to(torch.float16)


def gradient_of_pictures(pipe: DiffusionPipeline, spec: GenerationSpec) -> tuple[Tensor, Tensor, float]:
    """Return pictures as recorded and as differentiated, and the gradient of their sum to a shift of the latents."""
    family = find_family(pipe)
    trace = record_calls(pipe, family, ["a cat", "a dog"], spec)
    shift = torch.zeros((), requires_grad=True)
    handle = pipe.unet.conv_out.register_forward_hook(lambda _, __, output: output + shift)
    with differentiable(pipe, pipe.unet):
        pictures = regenerate_batch(pipe, spec, trace.batches[0], gradient=True)
        (gradient,) = torch.autograd.grad(pictures.sum(), shift)
    handle.remove()
    return trace.pictures, pictures.detach(), float(gradient)


@pytest.mark.parametrize("apple", [False, True])
def test_a_decoder_that_float16_is_too_narrow_for_is_widened_and_narrow_again(monkeypatch, apple: bool) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    pipe, spec = narrow_pipeline(), GenerationSpec(height=16, width=16)
    before = fingerprint(pipe.vae)
    recorded, pictures, gradient = gradient_of_pictures(pipe, spec)
    torch.testing.assert_close(pictures, recorded, rtol=0.0, atol=2e-3)
    assert fingerprint(pipe.vae) == before
    assert pipe.vae.to(torch.float64).dtype == torch.float64
    _, _, expected = gradient_of_pictures(narrow_pipeline().to(torch.float32), spec)
    assert gradient == pytest.approx(expected, rel=0.02)


class Watermark:
    """Wants numbers, as diffusers' does."""

    def apply_watermark(self, images: Tensor) -> Tensor:
        return torch.from_numpy(1.0 * images.numpy())


def test_whoever_marks_pictures_does_not_stop_a_gradient_and_is_there_again() -> None:
    plain, pipe = tiny_sdxl_pipeline(), tiny_sdxl_pipeline()
    pipe.watermark = watermark = Watermark()
    assert gradient_of_pictures(pipe, GenerationSpec())[2] == gradient_of_pictures(plain, GenerationSpec())[2] != 0.0
    assert pipe.watermark is watermark


def test_whoever_checks_pictures_does_not_stop_a_gradient_and_is_there_again() -> None:
    plain, pipe = tiny_sd_pipeline(), tiny_sd_pipeline()
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config={**tower, "image_size": 32, "patch_size": 16}))
    size = {"height": 32, "width": 32}
    pipe.register_modules(
        safety_checker=checker, feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    )
    config = dict(pipe.config)
    assert gradient_of_pictures(pipe, GenerationSpec())[2] == gradient_of_pictures(plain, GenerationSpec())[2] != 0.0
    assert pipe.safety_checker is checker
    assert dict(pipe.config) == config


def test_an_offloaded_model_is_named_before_anything_runs() -> None:
    pipe = tiny_sdxl_pipeline()
    _, hook = cpu_offload_with_hook(pipe.vae, "cpu")
    with (
        pytest.raises(ConfigError, match=r"AutoencoderTiny is offloaded.*remove_all_hooks.*method = 'exact'"),
        differentiable(pipe, pipe.unet),
    ):
        pass
    hook.remove()
    with differentiable(pipe, pipe.unet):
        pass


def test_a_denoiser_that_cannot_checkpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_sdxl_pipeline()
    monkeypatch.setattr(type(pipe.unet), "_supports_gradient_checkpointing", False)
    with (
        pytest.raises(ConfigError, match=r"checkpointing = true: UNet2DConditionModel does not know how"),
        differentiable(pipe, pipe.unet, checkpointing=True),
    ):
        pass
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())
