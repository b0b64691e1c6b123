from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

from mixdq.report.facts import ReportFacts
from mixdq.report.plots import pareto_plot, sensitivity_plot
from mixdq.report.theme import LIGHT
from mixdq.types.scores import SensitivityTable


def test_sensitivity_of_both_roles_is_drawn_even_where_it_is_infinite(facts: ReportFacts) -> None:
    assert facts.sensitivity is not None
    for role in ("weight", "activation"):
        drawn = sensitivity_plot(facts.sensitivity, facts.layers, role, LIGHT)
        assert drawn is not None
        ElementTree.fromstring(drawn)


def test_dots_are_what_was_measured_where_the_rest_is_estimated(facts: ReportFacts) -> None:
    assert facts.sensitivity is not None

    table = facts.sensitivity
    weights = [score for score in table.scores if score.role == "weight"]

    def marks(estimated: int) -> int:
        scores = [replace(score, stderr=0.1) for score in weights[:estimated]] + weights[estimated:]
        drawn = sensitivity_plot(replace(table, scores=tuple(scores)), facts.layers, "weight", LIGHT)
        assert drawn is not None
        return sum(1 for _ in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}use"))

    group_of = {layer.name: layer.group for layer in facts.layers}
    lines = Counter((group_of[score.layer], score.metric, score.num_bits) for score in weights)

    def expected(estimated: int) -> int:
        # A layer alone is no line, and is a mark whatever it is.
        alone = [lines[group_of[score.layer], score.metric, score.num_bits] == 1 for score in weights[:estimated]]
        return len(weights) - estimated + sum(alone)

    # Ticks are marks too.
    everything = len(weights)
    for count in (1, everything - 1):
        assert marks(count) - marks(everything) == expected(count) - expected(everything) > 0


def test_sensitivity_that_nobody_measured_is_not_drawn(facts: ReportFacts) -> None:
    assert sensitivity_plot(SensitivityTable(scores=(), origin={}), facts.layers, "weight", LIGHT) is None


def test_pareto_leaves_out_what_is_infinite_or_unknown(facts: ReportFacts) -> None:
    evaluations = [variant.evaluation for variant in facts.variants]
    assert pareto_plot(evaluations, lambda e: e.psnr_db, "PSNR", LIGHT) is not None
    assert pareto_plot(evaluations[:2], lambda e: e.psnr_db, "PSNR", LIGHT) is None
    unknown = [replace(e, clip_score=None) for e in evaluations]
    assert pareto_plot(unknown, lambda e: e.clip_score, "CLIP score", LIGHT) is None
