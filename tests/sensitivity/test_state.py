import math

from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.sensitivity.resume import MemorySink
from mixdq.sensitivity.state import exact_count, is_complete, known_table, measured, next_of
from mixdq.sensitivity.trials import list_trials
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.scores import Score

WIDTHS = {"content": (4, 8), "quality": (4, 8)}


def test_a_hybrid_analysis_is_complete_when_its_share_is_measured_and_not_before() -> None:
    pipe = tiny_sdxl_pipeline()
    table = list_layers(pipe, find_family(pipe), GenerationSpec(), model="tiny")
    trials = list_trials(table, WIDTHS, {}, {"content": ("ssim",), "quality": ("sqnr",)})
    sink = MemorySink({})
    values = {"ssim": 0.9, "sqnr": 30.0}
    for number, key in enumerate(key for trial in trials for key in trial.keys):
        assert not is_complete(trials, table, sink, method="sketch")
        layer, role, bits, metric = key
        value = values[metric] + number * 1e-3 + (0.05 if metric == "ssim" else 20.0) * (bits == 8)
        sink.append(Score(layer=layer, role=role, num_bits=bits, metric=metric, value=value, stderr=value / 20))
    assert is_complete(trials, table, sink, method="sketch")
    assert exact_count(trials, "sketch", 0.5) == 0
    count = exact_count(trials, "hybrid", 0.5)
    assert count == math.ceil(len(trials) / 2)
    while chosen := next_of(trials, table, sink, count):
        assert not is_complete(trials, table, sink, method="hybrid", exact_share=0.5)
        for trial in chosen:
            (before,) = (sink.estimates[key] for key in trial.keys)
            sink.append(
                Score(layer=trial.layer, role=trial.role, num_bits=trial.num_bits, metric=before.metric, value=0.5)
            )
    assert is_complete(trials, table, sink, method="hybrid", exact_share=0.5)
    assert 0 < measured(trials, sink) <= count
    scores = known_table(trials, sink).scores
    assert [score.key for score in scores] == [key for trial in trials for key in trial.keys]
    assert sum(score.stderr is None for score in scores) == measured(trials, sink)
