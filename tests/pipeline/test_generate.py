import pytest
import torch

from mixdq.errors import ConfigError, NonFiniteError
from mixdq.pipeline.generate import GenerationSpec, denoise, generate
from mixdq.testing import fingerprint, tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline

PROMPTS = ["a cat", "a dog at sea", "a red boat"]


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
@pytest.mark.parametrize("build", [tiny_sdxl_pipeline, tiny_sd_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline])
def test_pictures_do_not_depend_on_the_batch(build, guidance_scale: float, steps: int) -> None:
    pipe = build()
    spec = GenerationSpec(steps=steps, guidance_scale=guidance_scale, height=16, width=16)
    together = generate(pipe, PROMPTS, spec)
    assert together.shape == (3, 3, 16, 16)
    assert together.dtype == torch.float32
    assert 0.0 <= float(together.min()) <= float(together.max()) <= 1.0
    alone = generate(pipe, PROMPTS, spec, batch_size=1)
    # Float rounding alone: noise of another picture would differ by the size of the noise itself.
    assert torch.allclose(together, alone, atol=1e-3)


def test_one_seed_gives_the_same_pictures_twice_and_another_seed_others() -> None:
    pipe = tiny_sdxl_pipeline()
    first = generate(pipe, PROMPTS, GenerationSpec(steps=2))
    torch.manual_seed(99)
    assert torch.equal(first, generate(pipe, PROMPTS, GenerationSpec(steps=2)))
    other = generate(pipe, PROMPTS, GenerationSpec(steps=2, seed=1))
    assert not torch.allclose(first, other, atol=0.05)


def test_pictures_of_one_prompt_have_noise_of_their_own() -> None:
    pictures = generate(tiny_sdxl_pipeline(), ["a cat", "a cat"], GenerationSpec())
    assert not torch.allclose(pictures[0], pictures[1], atol=0.05)


def test_the_size_is_the_one_asked_for() -> None:
    assert generate(tiny_sdxl_pipeline(), ["a cat"], GenerationSpec(height=24, width=32)).shape == (1, 3, 24, 32)


def test_the_pipeline_keeps_its_progress_bar_and_its_weights() -> None:
    pipe = tiny_sdxl_pipeline()
    pipe.set_progress_bar_config(desc="mine")
    before = fingerprint(pipe.unet)
    generate(pipe, ["a cat"], GenerationSpec())
    assert pipe._progress_bar_config == {"desc": "mine"}
    assert fingerprint(pipe.unet) == before


def test_progress_counts_prompts() -> None:
    told: list[tuple[int, int, str]] = []
    generate(tiny_sdxl_pipeline(), PROMPTS, GenerationSpec(), batch_size=2, progress=lambda *fact: told.append(fact))
    assert told == [(0, 3, "pictures"), (2, 3, "pictures"), (3, 3, "pictures")]


def test_denoising_runs_the_denoiser_and_decodes_nothing() -> None:
    pipe = tiny_sdxl_pipeline()
    ran: list[str] = []
    pipe.unet.register_forward_hook(lambda *_: ran.append("unet"))
    pipe.vae.decoder.register_forward_hook(lambda *_: ran.append("vae"))
    denoise(pipe, PROMPTS, GenerationSpec(steps=2), batch_size=2)
    assert ran == ["unet"] * 4


def test_a_picture_of_nan_is_named() -> None:
    pipe = tiny_sdxl_pipeline()
    with torch.no_grad():
        pipe.vae.decoder.layers[0].weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="picture 0") as caught:
        generate(pipe, PROMPTS, GenerationSpec())
    assert caught.value.where == "picture 0"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"guidance_scale": -1.0}, "guidance_scale = -1"),
        ({"guidance_scale": float("nan")}, "guidance_scale = nan"),
        ({"height": 100}, "height = 100"),
        ({"width": 0}, "width = 0"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        GenerationSpec(**settings)


@pytest.mark.parametrize("build", [tiny_flux_pipeline, tiny_sd3_pipeline])
def test_a_size_that_is_no_whole_number_of_patches_is_named(build) -> None:
    pipe = build()
    # A tiny VAE halves the size, a transformer joins patches of 2: real ones come to 16.
    assert generate(pipe, ["a cat"], GenerationSpec(height=24, width=16)).shape == (1, 3, 24, 16)
    pipe.image_processor.register_to_config(vae_scale_factor=8 * pipe.image_processor.config.vae_scale_factor // 2)
    with pytest.raises(ConfigError, match=r"width = 24: .*multiples of 16 pixels"):
        generate(pipe, ["a cat"], GenerationSpec(height=16, width=24))


def test_no_prompts_are_our_mistake() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        generate(tiny_sdxl_pipeline(), [], GenerationSpec())
