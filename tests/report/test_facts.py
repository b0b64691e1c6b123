from dataclasses import replace

import pytest

from mixdq.errors import ArtifactFormatError
from mixdq.report.facts import ReportFacts


def test_names_must_differ(facts: ReportFacts) -> None:
    with pytest.raises(ValueError, match="names that differ"):
        replace(facts, variants=(facts.reference, facts.reference))


def test_values_of_other_prompts_are_refused(facts: ReportFacts) -> None:
    with pytest.raises(ValueError, match="prompts"):
        replace(facts, prompts=("only one",))


def test_mixed_variants_are_those_with_several_widths(facts: ReportFacts) -> None:
    assert [variant.name for variant in facts.mixed] == ["mixed"]


def test_missing_pictures_are_named(facts: ReportFacts) -> None:
    with pytest.raises(ArtifactFormatError, match=r"expected 9 PNG pictures of float.*found 3"):
        facts.reference.picture_files(9)
