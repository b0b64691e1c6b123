import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from mixdq.report.facts import ReportFacts
from mixdq.report.html import render_html

_VOID = {"meta", "img", "source", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects tags and attributes, and holds every end tag to its start."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "action")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(page: str) -> Page:
    parser = Page()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def page(facts: ReportFacts) -> str:
    return render_html(facts)


def test_page_asks_nothing_of_the_network(page: str) -> None:
    assert all(address.startswith(("data:image/", "#")) for address in parse(page).addresses)
    assert not re.search(r"https?://|url\(|@import", page)


def test_strings_are_escaped(facts: ReportFacts, page: str) -> None:
    parsed = parse(page)
    assert "script" not in parsed.tags
    assert facts.prompts[1] in parsed.text
    assert "slow <b>by design</b>" in parsed.text


def test_page_shows_every_variant_layer_and_refusal(facts: ReportFacts, page: str) -> None:
    text = parse(page).text
    for word in [*(v.name for v in facts.variants), *(layer.name for layer in facts.layers), "needs a GPU, found none"]:
        assert word in text


def test_a_picture_for_each_prompt_and_variant(facts: ReportFacts) -> None:
    short = render_html(replace(facts, shown_prompts=2, sensitivity=None))
    grid = short[short.index('class="shots"') : short.index("The worst picture")]
    assert grid.count("<img") == 2 * len(facts.variants)
    assert "The first 2 of 3 prompts" in short


def test_report_of_floating_point_alone_renders(facts: ReportFacts) -> None:
    bare = replace(facts, variants=facts.variants[:1], sensitivity=None, receipts=(), candidates={}, warnings=())
    assert "Where the bits went" not in parse(render_html(bare)).text


def test_page_is_the_same_twice(facts: ReportFacts, page: str) -> None:
    assert render_html(facts) == page
