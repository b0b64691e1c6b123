from itertools import pairwise

from matplotlib.colors import rgb_to_hsv, to_rgb

from mixdq.report.theme import BIT_COLOURS, on_colour


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_digits_read_on_every_colour() -> None:
    # WCAG 2.1 asks for a contrast of 3 for bold text and graphics.
    for fill in BIT_COLOURS.values():
        light, dark = sorted((luminance(fill), luminance(on_colour(fill))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3


def test_colours_run_from_orange_to_blue() -> None:
    # Hue in degrees rises with bits and jumps over green, which deuteranopes and protanopes take for orange.
    hues = [360 * rgb_to_hsv(to_rgb(BIT_COLOURS[bits]))[0] for bits in sorted(BIT_COLOURS)]
    assert all(few < many for few, many in pairwise(hues))
    assert not any(60 < hue < 180 for hue in hues)
