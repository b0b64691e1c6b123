from mixdq.sensitivity.resume import MemorySink, Sink
from mixdq.types.scores import Score, SensitivityTable

SCORE = Score(layer="conv_in", role="weight", num_bits=4, metric="sqnr", value=31.25)


def test_memory_keeps_scores_in_order_with_their_origin() -> None:
    sink: Sink = MemorySink({"model": "d"})
    assert not sink.done
    other = Score(layer="conv_in", role="activation", num_bits=4, metric="sqnr", value=3.0)
    sink.append(SCORE)
    sink.append(other)
    assert sink.done == {SCORE.key, other.key}
    assert sink.table == SensitivityTable(scores=(SCORE, other), origin={"model": "d"})
