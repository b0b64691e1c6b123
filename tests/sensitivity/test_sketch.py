import re
from collections.abc import Sequence

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from mixdq.errors import ConfigError
from mixdq.pipeline.generate import GenerationSpec
from mixdq.sensitivity.desk import Desk
from mixdq.sensitivity.engines.local import run_local
from mixdq.sensitivity.resume import Floats, VectorSink
from mixdq.sensitivity.scorer import TrialScorer
from mixdq.sensitivity.sketch import MOST_VECTORS, VECTORS_A_ROUND, check_sketched, sketch
from mixdq.sensitivity.trials import Trial
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.scores import Score, VectorKey


def sketched(
    trials: Sequence[Trial], scorer: TrialScorer, known: VectorSink, *, workers: int = 1, **options: object
) -> list[Score]:
    """Scores as the local engine finds them, cut into slices as for so many workers."""
    desk = Desk(scorer, {trials[0].metrics[0]: trials})
    with run_local(desk) as team:
        team.workers = workers
        return list(sketch(desk, team, known, **options))


@pytest.mark.parametrize(
    ("tolerance", "fewest", "most"),
    [(10.0, VECTORS_A_ROUND, VECTORS_A_ROUND), (0.25, 8, 20), (1e-9, MOST_VECTORS, MOST_VECTORS)],
)
def test_vectors_are_added_until_the_median_loss_is_known_well_enough(
    build_scorer, eight_bit_trials, caplog, tolerance: float, fewest: int, most: int
) -> None:
    """Three pictures and n vectors leave an error of about sqrt(2 / 3 n): 0.25 of the loss for n = 11."""
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    trials = eight_bit_trials(scorer, "sqnr")[::5]
    told: list[tuple[int, int, str]] = []
    known: dict[VectorKey, Floats] = {}
    scores = sketched(trials, scorer, known, tolerance=tolerance, progress=lambda *what: told.append(what))
    assert [score.key for score in scores] == [trial.keys[0] for trial in trials]
    assert all(score.stderr for score in scores)
    assert fewest <= len(known) <= most
    out_of_reach = re.search(r"after 32 vectors.* known to (0\.\d+) of itself, not to tolerance = 1e-09", caplog.text)
    assert bool(out_of_reach) == ("tolerance" in caplog.text) == (tolerance == 1e-9)
    if out_of_reach:
        assert float(out_of_reach[1]) == pytest.approx((2 / 96) ** 0.5, rel=0.3)
    assert known.keys() == {("sqnr", 0, number) for number in range(len(known))}
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[0] == (0, told[0][1], "sketch")
    assert told[-1] == (len(known), len(known), "sketch")
    assert all(done <= total <= MOST_VECTORS for done, total, _ in told)


@pytest.mark.parametrize("at", [1, 3, 4])
def test_an_interrupted_sketch_goes_on_and_gives_the_same_whatever_the_slices_were(
    build_scorer, eight_bit_trials, at: int
) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec(), batch_size=2)
    trials = eight_bit_trials(scorer, "ssim")[::3]
    whole = sketched(trials, scorer, {})

    class Killed(dict[VectorKey, Floats]):
        def update(self, found: dict[VectorKey, Floats]) -> None:
            super().update(found)
            if len(self) >= at:
                raise KeyboardInterrupt

    kept = Killed()
    with pytest.raises(KeyboardInterrupt):
        sketched(trials, scorer, kept, workers=3)
    ran: list[int] = []
    handle = scorer.denoiser.register_forward_hook(lambda *_: ran.append(1))
    known = dict(kept)
    assert sketched(trials, scorer, known) == whole
    assert len(ran) < len(known)
    ran.clear()
    assert sketched(trials, scorer, known) == whole
    handle.remove()
    assert not ran


def test_what_gradients_tell_nothing_of_is_measured_once_and_said(build_scorer, eight_bit_trials, caplog) -> None:
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
    known: dict[VectorKey, Floats] = {}
    scores = sketched(some, scorer, known)
    assert "gradients tell nothing of 4 of 4 trials" in caplog.text
    exact = {score.key: score for score in scores if score.stderr is None}
    assert set(exact) == {
        *((unseen, role, 8, "sqnr") for role in ("weight", "activation")),
        *((unchanged, role, 8, "sqnr") for role in ("weight", "activation")),
    }
    assert all(scorer(trial)[0] == exact[trial.keys[0]] for trial in some)
    assert exact[unchanged, "weight", 8, "sqnr"].value == float("inf")
    ran: list[int] = []
    told: list[tuple[int, int, str]] = []
    scorer.denoiser.register_forward_hook(lambda *_: ran.append(1))
    done = {score.key for score in scores[:3]}
    assert sketched(some, scorer, known, done=done, progress=lambda *what: told.append(what)) == scores[3:]
    assert len(ran) == len(scorer.trace.calls)
    assert [one for one in told if one[2] != "sketch"] == [(0, 1, "not sketched"), (1, 1, "not sketched")]


def test_a_metric_without_a_form_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"metric psnr can be measured exactly only.*method = 'exact'"):
        check_sketched([Trial(layer="conv_in", role="weight", num_bits=8, metrics=("psnr",))])
