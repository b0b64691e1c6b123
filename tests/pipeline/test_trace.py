import functools

import pytest
import torch
from torch import Tensor

from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec, generate
from mixdq.pipeline.trace import moved, record_calls, regenerate, replay, replay_there
from mixdq.testing import fingerprint, tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline

PROMPTS = ["a cat", "a dog at sea", "a red boat"]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
@pytest.mark.parametrize("build", [tiny_sdxl_pipeline, tiny_sd_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline])
def test_an_unchanged_model_repeats_its_trace_bit_for_bit(build, guidance_scale: float, steps: int) -> None:
    pipe = build()
    family = find_family(pipe)
    denoiser = family.denoiser(pipe)
    before = fingerprint(denoiser)
    spec = GenerationSpec(steps=steps, guidance_scale=guidance_scale, seed=5, height=16, width=16)
    trace = record_calls(pipe, family, PROMPTS, spec, batch_size=2)
    assert torch.equal(trace.pictures, generate(pipe, PROMPTS, spec, batch_size=2))
    assert torch.equal(trace.pictures, regenerate(pipe, trace))
    assert len(trace.calls) == 2 * steps
    for call in trace.calls:
        assert torch.equal(replay(denoiser, call), call.output)
    assert fingerprint(denoiser) == before


def test_a_call_can_be_moved_and_repeated_where_it_is() -> None:
    pipe = tiny_sdxl_pipeline()
    (call,) = record_calls(pipe, find_family(pipe), PROMPTS, GenerationSpec()).calls
    meta = torch.device("meta")
    output = replay_there(pipe.unet.to(meta), moved(call, meta))
    assert (output.device, output.shape) == (meta, call.output.shape)
    assert call.kwargs["added_cond_kwargs"]["time_ids"].device.type == "cpu"


def test_a_changed_denoiser_shows_in_outputs_and_pictures() -> None:
    pipe = tiny_sdxl_pipeline()
    trace = record_calls(pipe, find_family(pipe), PROMPTS, GenerationSpec(steps=2))
    with torch.no_grad():
        pipe.unet.conv_out.bias += 1.0
    for call in trace.calls:
        assert torch.allclose(replay(pipe.unet, call), call.output + 1.0, atol=1e-5)
    assert not torch.allclose(regenerate(pipe, trace), trace.pictures, atol=0.05)


def test_pictures_are_made_again_without_text_encoders() -> None:
    pipe = tiny_sdxl_pipeline()
    trace = record_calls(pipe, find_family(pipe), PROMPTS, GenerationSpec())
    pipe.text_encoder.forward = pipe.text_encoder_2.forward = None
    assert torch.equal(regenerate(pipe, trace), trace.pictures)


def test_steps_share_one_copy_of_their_embeddings() -> None:
    pipe = tiny_sdxl_pipeline()
    calls = record_calls(pipe, find_family(pipe), PROMPTS, GenerationSpec(steps=3)).calls
    states = {call.kwargs["encoder_hidden_states"].data_ptr() for call in calls}
    assert len(states) == 1


def test_a_recorded_call_is_a_copy() -> None:
    pipe = tiny_sdxl_pipeline()
    trace = record_calls(pipe, find_family(pipe), PROMPTS, GenerationSpec(steps=2))
    # Were the latents not copied, the second step would have overwritten the first one's.
    assert not torch.equal(trace.calls[0].args[0], trace.calls[1].args[0])
    assert trace.calls[0].args[0].data_ptr() != trace.calls[0].output.data_ptr()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_recording_takes_its_hook_off_whatever_happens(error: type[BaseException]) -> None:
    pipe = tiny_sdxl_pipeline()

    def fail(*_: object) -> None:
        raise error

    pipe.vae.decoder.register_forward_hook(fail)
    before = fingerprint(pipe.unet)
    with pytest.raises(error):
        record_calls(pipe, find_family(pipe), PROMPTS, GenerationSpec())
    assert fingerprint(pipe.unet) == before


def test_no_prompts_are_our_mistake() -> None:
    pipe = tiny_sdxl_pipeline()
    with pytest.raises(ValueError, match="no prompts"):
        record_calls(pipe, find_family(pipe), [], GenerationSpec())


def test_a_tensor_that_is_written_to_between_calls_is_recorded_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_sdxl_pipeline()
    spec = GenerationSpec(steps=2)
    expected = record_calls(pipe, find_family(pipe), ["a cat"], spec).calls
    step = pipe.scheduler.step

    # The pipeline reads from the signature whether there is a generator to pass.
    @functools.wraps(step)
    def step_in_place(output: Tensor, timestep: Tensor, sample: Tensor, **options: object) -> tuple[Tensor, ...]:
        return (sample.copy_(step(output, timestep, sample, **options)[0]),)

    monkeypatch.setattr(pipe.scheduler, "step", step_in_place)
    found = record_calls(pipe, find_family(pipe), ["a cat"], spec).calls
    assert not torch.equal(found[0].args[0], found[1].args[0])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.args[0], other.args[0])
