import pytest

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
    case: str, metric: str, build_scorer, eight_bit_trials, products_of
) -> None:
    scorer = build_scorer(*CASES[case], batch_size=2)
    trials = eight_bit_trials(scorer, metric)[::9]
    before = fingerprint(scorer.denoiser)
    losses = Losses(trials, metric)
    losses.add(products_of(trials, scorer, metric, 16))
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


def test_the_error_falls_with_the_number_of_vectors(build_scorer, eight_bit_trials, products_of) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    trials = eight_bit_trials(scorer, "sqnr")
    products, losses = products_of(trials, scorer, "sqnr", 16), Losses(trials, "sqnr")
    losses.add(products[:4])
    first = losses.error
    losses.add(products[4:])
    # A quarter of the variance; and 16 squares of 3 rows have a relative error of sqrt(2 / 48) where they are normal.
    assert losses.error == pytest.approx(first / 2, rel=0.3)
    assert losses.error == pytest.approx((2 / 48) ** 0.5, rel=0.3)


def test_a_layer_that_no_gradient_reaches_has_no_estimate(build_scorer, eight_bit_trials, products_of) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    trials = eight_bit_trials(scorer, "sqnr")
    scorer.denoiser.mid_block.register_forward_hook(lambda _, __, output: output.detach())
    losses = Losses(trials, "sqnr")
    losses.add(products_of(trials, scorer, "sqnr", 2))
    for trial, score in zip(trials, losses.scores(), strict=True):
        if trial.layer.startswith("mid_block."):
            assert score is None
