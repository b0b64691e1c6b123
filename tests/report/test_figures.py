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
