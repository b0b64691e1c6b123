import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixdq.allocation.protect import protected_layers

CHOICES = {"content": (4, 8), "quality": (4, 8)}


@given(st.lists(st.floats(0, 90), min_size=1, max_size=30), st.floats(0, 1))
def test_protected_are_the_lowest_and_the_share_is_rounded_up(values, share) -> None:
    groups = {f"l{i}": "quality" for i in range(len(values))}
    scores = {f"l{i}": {4: 0.0, 8: value} for i, value in enumerate(values)}
    protected = protected_layers(groups, scores, CHOICES, share)
    assert share * len(values) - 1e-6 <= len(protected) < share * len(values) + 1
    left = [scores[name][8] for name in groups if name not in protected]
    assert max((scores[name][8] for name in protected), default=-math.inf) <= min(left, default=math.inf)


def test_each_group_is_counted_apart_and_content_comes_first() -> None:
    groups = {"q": "quality", "c1": "content", "c2": "content"}
    scores = {"q": {8: 99.0}, "c1": {8: 0.9}, "c2": {8: 0.8}}
    assert protected_layers(groups, scores, CHOICES, 0.5) == ("c2", "q")


def test_share_of_zero_protects_nothing() -> None:
    assert protected_layers({"a": "content"}, {"a": {8: 1.0}}, CHOICES, 0.0) == ()


def test_share_is_not_raised_by_rounding() -> None:
    groups = {f"l{i}": "content" for i in range(100)}
    scores = {name: {8: 1.0} for name in groups}
    assert 0.07 * 100 > 7
    assert protected_layers(groups, scores, CHOICES, 0.07) == tuple(f"l{i}" for i in range(7))


@pytest.mark.parametrize("widths", [(), (16,)])
def test_group_without_quantized_widths_needs_no_protection(widths) -> None:
    assert protected_layers({"a": "content"}, {"a": {16: 1.0}}, {"content": widths}, 1.0) == ()
