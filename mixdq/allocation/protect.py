"""Which activations stay in floating point: the most sensitive share of each group (arXiv 2405.17873)."""

import math
from collections.abc import Mapping, Sequence

from mixdq.types.layers import GROUPS, Group
from mixdq.types.plan import FLOAT_BITS


def protected_layers(
    groups: Mapping[str, Group],
    scores: Mapping[str, Mapping[int, float]],
    choices: Mapping[Group, Sequence[int]],
    share: float,
) -> tuple[str, ...]:
    """Return the layers whose inputs stay in floating point, most sensitive first, group by group.

    Of each group the `share` (rounded up) with the lowest scores at the group's greatest width below 16; equal scores
    in the order of `groups`, which maps layer -> group. `scores` maps layer -> bits -> score, higher is better.

    >>> protected_layers({"a": "content", "b": "content"}, {"a": {8: 3.0}, "b": {8: 1.0}}, {"content": [8]}, 0.5)
    ('b',)
    """
    chosen: list[str] = []
    for group in GROUPS:
        members = [layer for layer, its_group in groups.items() if its_group == group]
        widths = [bits for bits in choices.get(group, ()) if bits < FLOAT_BITS]
        if not widths or not members:
            continue
        # 0.07 * 100 is 7.000000000000001 in floating point and means 7.
        count = math.ceil(share * len(members) - 1e-9)
        chosen += sorted(members, key=lambda layer: scores[layer][max(widths)])[:count]
    return tuple(chosen)
