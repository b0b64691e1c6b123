from xml.etree import ElementTree

import pytest

from mixdq.report.bit_map import bit_map
from mixdq.report.facts import ReportFacts
from mixdq.report.theme import BIT_COLOURS, DARK, LIGHT, Theme


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_map_is_svg_with_a_colour_for_each_width(facts: ReportFacts, theme: Theme) -> None:
    plan = facts.mixed[0].plan
    assert plan is not None
    drawn = bit_map(plan, facts.layers, "weight", theme)
    ElementTree.fromstring(drawn)
    for fill in (BIT_COLOURS[8], BIT_COLOURS[4], BIT_COLOURS[2], theme.float_fill):
        assert fill.encode() in drawn
    assert BIT_COLOURS[6].encode() not in drawn


def test_map_is_the_same_bytes_twice(facts: ReportFacts) -> None:
    plan = facts.mixed[0].plan
    assert plan is not None
    assert bit_map(plan, facts.layers, "activation", LIGHT) == bit_map(plan, facts.layers, "activation", LIGHT)
