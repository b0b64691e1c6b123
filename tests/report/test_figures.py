from dataclasses import replace

from mixdq.report.facts import ReportFacts
from mixdq.report.figures import bit_maps, pareto_plots, sensitivity_plots
from mixdq.report.theme import LIGHT


def test_plots_have_file_names_of_their_own(facts: ReportFacts) -> None:
    plots = pareto_plots(facts) + sensitivity_plots(facts) + bit_maps(facts, facts.mixed[0])
    assert len({plot.key for plot in plots}) == len(plots) == 6
    assert all(plot.draw(LIGHT) for plot in plots)


def test_nothing_is_drawn_of_what_is_not_there(facts: ReportFacts) -> None:
    assert sensitivity_plots(replace(facts, sensitivity=None)) == []
    assert bit_maps(facts, facts.reference) == []


def test_a_caption_says_how_many_scores_are_estimates_and_nothing_where_none_is(facts: ReportFacts) -> None:
    assert facts.sensitivity is not None
    assert not any("estimates" in plot.text for plot in sensitivity_plots(facts))
    scores = facts.sensitivity.scores
    some = tuple(replace(score, stderr=0.1) if score.role == "weight" else score for score in scores[:-1])
    plots = sensitivity_plots(replace(facts, sensitivity=replace(facts.sensitivity, scores=some)))
    count = sum(score.role == "weight" for score in some)
    assert plots[0].text.endswith(f"{count} of {count} scores are estimates from gradients; dots are measured.")
    assert "estimates" not in plots[1].text
