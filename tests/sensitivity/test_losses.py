from dataclasses import replace

import pytest
import torch

from mixdq.errors import NonFiniteError, UnsupportedModelError
from mixdq.pipeline.generate import GenerationSpec
from mixdq.sensitivity.losses import Losses
from mixdq.testing import fingerprint, tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline

CASES = {
    "sdxl": (tiny_sdxl_pipeline, GenerationSpec()),
    "sdxl, guided": (tiny_sdxl_pipeline, GenerationSpec(guidance_scale=2.0)),
    "sd, two steps": (tiny_sd_pipeline, GenerationSpec(steps=2)),
    "flux": (tiny_flux_pipeline, GenerationSpec(height=16, width=16)),
    "sd3": (tiny_sd3_pipeline, GenerationSpec(height=16, width=16)),
}


@pytest.mark.parametrize("metric", ["sqnr", "ssim"])
@pytest.mark.parametrize("case", CASES)
def test_small_errors_are_estimated_within_their_standard_errors(
    case: str, metric: str, build_scorer, eight_bit_trials
) -> None:
    scorer = build_scorer(*CASES[case], batch_size=2)
    trials = eight_bit_trials(scorer, metric)[::9]
    before = fingerprint(scorer.denoiser)
    losses = Losses(trials, scorer, metric)
    losses.add(16)
    assert fingerprint(scorer.denoiser) == before
    off = []
    for trial, found in zip(trials, losses.scores(), strict=True):
        (exact,) = scorer(trial)
        if found is None:
            assert exact.value in (1.0, float("inf")), trial
        else:
            assert found.stderr is not None
            off.append(abs(found.value - exact.value) / found.stderr)
    # Nearly normal, but for the ends: 16 vectors tell the standard error itself to a fifth or so, and of errors near
    # the model's own rounding, some 1e-7 of a picture, the exact score shows that rounding too.
    assert len(off) >= 6
    assert sorted(off)[len(off) // 2] < 1.5
    assert sum(one > 4 for one in off) <= len(off) / 8


def test_vectors_do_not_depend_on_the_round_or_the_batch_they_come_in(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    trials = eight_bit_trials(scorer, "ssim")[:4]
    at_once, by_and_by = Losses(trials, scorer, "ssim"), Losses(trials, scorer, "ssim")
    at_once.add(4)
    by_and_by.add(1)
    by_and_by.add(3)
    assert torch.equal(at_once.squares, by_and_by.squares)
    assert at_once.squares.shape == (4, 3, 4)
    small = replace(scorer, trace=build_scorer(tiny_sdxl_pipeline, GenerationSpec(), batch_size=2).trace)
    in_batches = Losses(trials, small, "ssim")
    in_batches.add(4)
    assert torch.allclose(in_batches.squares, at_once.squares, rtol=1e-3)


def test_the_error_falls_with_the_number_of_vectors(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    losses = Losses(eight_bit_trials(scorer, "sqnr"), scorer, "sqnr")
    losses.add(4)
    first = losses.error
    losses.add(12)
    # A quarter of the variance; and 16 squares of 3 rows have a relative error of sqrt(2 / 48) where they are normal.
    assert losses.error == pytest.approx(first / 2, rel=0.3)
    assert losses.error == pytest.approx((2 / 48) ** 0.5, rel=0.3)


def test_checkpointing_gives_the_same_numbers_and_is_switched_off_again(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    trials = eight_bit_trials(scorer, "ssim")
    plain, saving = (Losses(trials, scorer, "ssim", checkpointing=saves) for saves in (False, True))
    plain.add(2)
    before = fingerprint(scorer.denoiser)
    saving.add(2)
    assert torch.allclose(plain.squares, saving.squares, rtol=1e-4)
    assert fingerprint(scorer.denoiser) == before
    assert not scorer.denoiser.is_gradient_checkpointing


def test_a_layer_that_no_gradient_reaches_has_no_estimate(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    trials = eight_bit_trials(scorer, "sqnr")
    scorer.denoiser.mid_block.register_forward_hook(lambda _, __, output: output.detach())
    losses = Losses(trials, scorer, "sqnr")
    losses.add(2)
    for trial, score in zip(trials, losses.scores(), strict=True):
        if trial.layer.startswith("mid_block."):
            assert score is None


def test_a_denoiser_without_gradients_is_refused_in_words(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    trials = eight_bit_trials(scorer, "sqnr")
    scorer.denoiser.conv_out.register_forward_hook(lambda _, __, output: output.detach())
    with pytest.raises(UnsupportedModelError, match=r"UNet2DConditionModel: no gradient.*method = 'exact'"):
        Losses(trials, scorer, "sqnr").add(1)


def test_memory_that_does_not_suffice_is_refused_with_what_to_set(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())

    def exhausted(*_: object) -> None:
        torch.empty(2**60)

    scorer.denoiser.conv_out.register_forward_hook(exhausted)
    with pytest.raises(UnsupportedModelError, match=r"no memory for a backward pass.*checkpointing = true"):
        Losses(eight_bit_trials(scorer, "sqnr"), scorer, "sqnr").add(1)


def test_a_gradient_that_is_not_finite_names_its_layer_and_leaves_the_model(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    name = "mid_block.attentions.0.proj_out"
    module = scorer.denoiser.get_submodule(name)

    def spoil(_: object, __: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda grad: grad * float("nan"))

    handle = module.register_forward_hook(spoil)
    with pytest.raises(NonFiniteError, match="the backward pass gives NaN") as caught:
        Losses(eight_bit_trials(scorer, "sqnr"), scorer, "sqnr").add(1)
    handle.remove()
    assert caught.value.where == name
    assert all(parameter.requires_grad for parameter in scorer.denoiser.parameters())
