"""How plots look, by day and by night: colours that colour-blind readers tell apart, and figures as SVG bytes."""

import io
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

BIT_COLOURS = {
    2: "#b93c00",
    3: "#dd6a10",
    4: "#f2a33a",
    5: "#c9bf93",
    6: "#86bbdc",
    7: "#4a90c8",
    8: "#1f5fa8",
}
"""From hot (few bits) to cool: orange and blue stay apart for every common colour blindness."""

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, for methods; markers differ too."""

MARKERS = ("o", "s", "D", "^", "v", "P")


@dataclass(frozen=True)
class Theme:
    """Colours of a plot; its background is transparent."""

    ink: str
    muted: str
    line: str
    surface: str
    float_fill: str

    def bits(self, num_bits: int) -> str:
        """Return the colour of a width."""
        return BIT_COLOURS.get(num_bits, self.float_fill)


LIGHT = Theme(ink="#1d1c1a", muted="#6d6a64", line="#dcd8d0", surface="#ffffff", float_fill="#d5d1ca")
DARK = Theme(ink="#ecebe8", muted="#a2a2ab", line="#383b46", surface="#1d1f27", float_fill="#565a66")


def on_colour(fill: str) -> str:
    """Return black or white, whichever reads better on `fill` (#rrggbb).

    >>> on_colour("#1f5fa8"), on_colour("#f2a33a")
    ('#ffffff', '#000000')
    """
    red, green, blue = (int(fill[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"


def svg(figure: Figure, *, tight: bool = True) -> bytes:
    """Return the figure as SVG, text as outlines, the same bytes for the same figure; `tight` trims its borders."""
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "mixdq", "svg.fonttype": "path"}):
        figure.savefig(
            out,
            format="svg",
            transparent=True,
            bbox_inches="tight" if tight else None,
            pad_inches=0.06,
            metadata={"Date": None},
        )
    return out.getvalue()
