from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from mixdq.pipeline.family import find_family
from mixdq.testing import (
    TOKENS,
    fingerprint,
    tiny_flux_pipeline,
    tiny_sd3_pipeline,
    tiny_sd_pipeline,
    tiny_sdxl_pipeline,
    tiny_tokenizer,
)

BUILDS = (tiny_sdxl_pipeline, tiny_sd_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline)


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    return pipe.components.get("unet") or pipe.components["transformer"]


def text_states(pipe: DiffusionPipeline, prompts: list[str]) -> Tensor:
    states = pipe.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
    return states.detach()


@pytest.mark.parametrize("build", BUILDS)
def test_a_seed_names_the_weights_and_leaves_the_global_random_state_alone(build) -> None:
    before = torch.random.get_rng_state()
    first, same, other = build(3), build(3), build(4)
    assert torch.equal(before, torch.random.get_rng_state())
    weights, others = denoiser(same).state_dict(), denoiser(other).state_dict()
    for name, weight in denoiser(first).state_dict().items():
        assert torch.equal(weight, weights[name])
    assert any(not torch.equal(weight, others[name]) for name, weight in weights.items())


@pytest.mark.parametrize("text_encoders", [1, 2])
def test_bos_is_the_same_for_every_prompt_and_far_above_the_other_tokens(text_encoders: int) -> None:
    states = text_states(tiny_sdxl_pipeline(text_encoders=text_encoders), ["a cat", "two dogs at sea", ""])
    assert states.shape == (3, TOKENS, 32 * text_encoders)
    assert torch.equal(states[0, 0], states[1, 0])
    assert torch.equal(states[0, 0], states[2, 0])
    assert states[:, 0].abs().max() > 20 * states[:, 1:].abs().max()


def test_without_outlier_bos_is_a_token_like_others() -> None:
    states = text_states(tiny_sdxl_pipeline(bos_outlier=0.0), ["a cat"])
    assert states[:, 0].abs().max() < 2 * states[:, 1:].abs().max()


def test_prompts_differ_after_bos() -> None:
    states = text_states(tiny_sd_pipeline(), ["a cat", "two dogs"])
    assert not torch.allclose(states[0, 1:], states[1, 1:], atol=0.1)


@pytest.mark.parametrize("build", BUILDS)
def test_pictures_are_neither_black_nor_white(build) -> None:
    pipe = build()
    pictures = pipe(
        ["a cat", "a dog"], num_inference_steps=1, guidance_scale=0.0, height=16, width=16, output_type="pt"
    ).images
    assert pictures.shape == (2, 3, 16, 16)
    assert ((pictures > 0.02) & (pictures < 0.98)).float().mean() > 0.3


@pytest.mark.parametrize("build", BUILDS)
def test_a_tiny_pipeline_survives_its_folder(build, tmp_path: Path) -> None:
    pipe = build()
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)
    encode = find_family(pipe).encode
    before, after = (encode(one, ["a red boat"], 0.0) for one in (pipe, again))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_t5_has_no_first_token_that_prompts_share() -> None:
    pipe = tiny_flux_pipeline()
    assert pipe.tokenizer_2("hi").input_ids[-1] == pipe.tokenizer_2.eos_token_id
    states = find_family(pipe).encode(pipe, ["a cat", "two dogs"], 0.0)["prompt_embeds"]
    assert not torch.allclose(states[0, 0], states[1, 0], atol=0.1)


def test_the_tokenizer_puts_bos_first_and_pads_with_eos() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("hi", padding="max_length", max_length=TOKENS).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[3:] == [tokenizer.eos_token_id] * (TOKENS - 3)


def test_other_numbers_of_text_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match="text_encoders = 3"):
        tiny_sdxl_pipeline(text_encoders=3)


def test_the_fingerprint_sees_weights_hooks_forwards_and_modes() -> None:
    unet = tiny_sdxl_pipeline().unet
    before = fingerprint(unet)
    assert fingerprint(unet) == before
    with torch.no_grad():
        unet.conv_in.bias[0] += 1
    assert fingerprint(unet) != before
    with torch.no_grad():
        unet.conv_in.bias[0] -= 1
    handle = unet.mid_block.register_forward_hook(lambda *_: None)
    assert fingerprint(unet) != before
    handle.remove()
    unet.conv_out.forward = unet.conv_out.forward
    assert fingerprint(unet) != before
    del unet.conv_out.forward
    unet.train()
    assert fingerprint(unet) != before
