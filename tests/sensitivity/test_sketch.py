import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from mixdq.errors import ConfigError
from mixdq.pipeline.generate import GenerationSpec
from mixdq.sensitivity.sketch import MOST_VECTORS, VECTORS_A_ROUND, sketch
from mixdq.sensitivity.trial import Trial
from mixdq.testing import tiny_sdxl_pipeline


@pytest.mark.parametrize(
    ("tolerance", "fewest", "most"),
    [(10.0, VECTORS_A_ROUND, VECTORS_A_ROUND), (0.25, 8, 20), (1e-9, MOST_VECTORS, MOST_VECTORS)],
)
def test_vectors_are_added_until_the_median_loss_is_known_well_enough(
    build_scorer, eight_bit_trials, tolerance: float, fewest: int, most: int
) -> None:
    """Three pictures and n vectors leave an error of about sqrt(2 / 3 n): 0.25 of the loss for n = 11."""
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    trials = eight_bit_trials(scorer, "sqnr")[::5]
    told: list[tuple[int, int, str]] = []
    scores = sketch(trials, scorer, tolerance=tolerance, progress=lambda *what: told.append(what))
    assert [score.key for score in scores] == [trial.keys[0] for trial in trials]
    assert all(score.stderr for score in scores)
    done = [number for number, _, _ in told]
    assert done == [*range(0, len(told) * VECTORS_A_ROUND - VECTORS_A_ROUND, VECTORS_A_ROUND), MOST_VECTORS]
    assert fewest <= (len(told) - 1) * VECTORS_A_ROUND <= most


def test_what_gradients_tell_nothing_of_is_measured(build_scorer, eight_bit_trials) -> None:
    unseen, unchanged = "mid_block.resnets.0.conv1", "up_blocks.0.resnets.0.conv1"

    def build() -> StableDiffusionXLPipeline:
        pipe = tiny_sdxl_pipeline()
        pipe.unet.get_submodule(unseen).register_forward_hook(lambda _, __, output: output.detach())
        with torch.no_grad():
            pipe.unet.get_submodule(unchanged).weight.zero_()
        return pipe

    scorer = build_scorer(build, GenerationSpec())
    trials = eight_bit_trials(scorer, "sqnr")
    some = [trial for trial in trials if trial.layer in (unseen, unchanged)]
    scores = sketch(some, scorer)
    exact = {score.key: score for score in scores if score.stderr is None}
    assert set(exact) == {
        *((unseen, role, 8, "sqnr") for role in ("weight", "activation")),
        *((unchanged, role, 8, "sqnr") for role in ("weight", "activation")),
    }
    assert all(scorer(trial)[0] == exact[trial.keys[0]] for trial in some)
    assert exact[unchanged, "weight", 8, "sqnr"].value == float("inf")


def test_a_metric_without_a_form_is_refused(build_scorer) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    with pytest.raises(ConfigError, match=r"metric psnr can be measured exactly only.*method = 'exact'"):
        sketch([Trial(layer="conv_in", role="weight", num_bits=8, metrics=("psnr",))], scorer)
