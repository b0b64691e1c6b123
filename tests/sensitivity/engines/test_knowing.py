import pytest

from mixdq.sensitivity.desk import Desk
from mixdq.sensitivity.engines.knowing import knowing
from mixdq.sensitivity.engines.local import run_local
from mixdq.sensitivity.trials import Trial
from mixdq.types.scores import Score

TRIALS = [Trial(layer=layer, role="weight", num_bits=4, metrics=("ssim", "sqnr")) for layer in "abcd"]


def scores_of(trial: Trial, value: float) -> tuple[Score, ...]:
    return tuple(
        Score(layer=trial.layer, role="weight", num_bits=4, metric=metric, value=value) for metric in trial.metrics
    )


@pytest.mark.parametrize("layers", ["", "bd", "a", "abcd"])
def test_what_is_known_is_not_done_again_and_everything_comes_in_order(layers) -> None:
    done: list[str] = []

    def do(desk: Desk, trial: Trial) -> tuple[Score, ...]:
        done.append(trial.layer)
        return scores_of(trial, 1.0)

    known = {score.key: score for trial in TRIALS if trial.layer in layers for score in scores_of(trial, 2.0)}
    with knowing(run_local, known)(Desk(None)) as team:
        assert team.workers == 1
        found = list(team.map(do, TRIALS))
    assert found == [scores_of(trial, 2.0 if trial.layer in layers else 1.0) for trial in TRIALS]
    assert "".join(done) == "".join(sorted(set("abcd") - set(layers)))


def test_a_trial_of_which_only_one_metric_is_known_is_done_and_so_is_any_other_task() -> None:
    known = {score.key: score for score in scores_of(TRIALS[0], 2.0)[:1]}
    with knowing(run_local, known)(Desk(None)) as team:
        assert list(team.map(lambda desk, trial: scores_of(trial, 1.0), TRIALS[:1])) == [scores_of(TRIALS[0], 1.0)]
        assert list(team.map(lambda desk, task: task + 1, [1, 2])) == [2, 3]
