from mixdq.sensitivity.engines.local import run_local
from mixdq.sensitivity.trial import Trial
from mixdq.types.scores import Score


def test_trials_run_one_by_one_in_order_and_only_when_asked_for() -> None:
    ran: list[int] = []

    def score(trial: Trial) -> tuple[Score, ...]:
        ran.append(trial.num_bits)
        return (Score(layer=trial.layer, role=trial.role, num_bits=trial.num_bits, metric="sqnr", value=1.0),)

    trials = [Trial(layer="a", role="weight", num_bits=bits, metrics=("sqnr",)) for bits in (2, 4, 8)]
    results = run_local(trials, score)
    assert ran == []
    assert next(results)[0].num_bits == 2
    assert ran == [2]
    assert [scores[0].num_bits for scores in results] == [4, 8]
