"""Names beside points, placed so that no name covers another name or a point."""

import math
from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

_FONT_SIZE = 8.5
_POINT_RADIUS = 6.0
_ANGLES = (0, 90, 270, 180, 45, 315, 135, 225)
_DISTANCES = (10.0, 22.0, 36.0, 52.0, 70.0)
"""In printer's points, as font sizes are."""


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float, str]],
    *,
    line: Sequence[tuple[float, float]] = (),
    colour: str,
    line_colour: str,
) -> list[Bbox]:
    """Write each name near its point (x, y, name) and return the boxes, in pixels, in the order of `points`.

    Names keep off the polygon `line` too.

    The nearest free place is taken, a thin line leads to it where that is not next to the point. Where nothing is
    free within reach the place with the least overlap is taken.
    """
    figure = axes.figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    scale = figure.dpi / 72
    centres = [axes.transData.transform((x, y)) for x, y, _ in points]
    radius = _POINT_RADIUS * scale
    taken = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in centres]
    taken += _along([(x, y) for x, y in axes.transData.transform(list(line))] if line else [], radius / 2)
    inside = axes.get_window_extent()
    boxes = []
    for (x, y, name), (centre_x, centre_y) in zip(points, centres, strict=True):
        probe = axes.text(0, 0, name, fontsize=_FONT_SIZE)
        extent = probe.get_window_extent(canvas.get_renderer())
        probe.remove()
        places = [
            (_box(centre_x, centre_y, extent.width, extent.height, angle, distance * scale), distance)
            for distance in _DISTANCES
            for angle in _ANGLES
        ]
        box, distance = min(places, key=lambda place: (_overlap(place[0], taken, inside), place[1]))
        taken.append(box)
        boxes.append(box)
        axes.annotate(
            name,
            (x, y),
            xytext=((box.x0 - centre_x) / scale, (box.y0 - centre_y) / scale),
            textcoords="offset points",
            fontsize=_FONT_SIZE,
            color=colour,
            va="bottom",
            arrowprops=None
            if distance == _DISTANCES[0]
            else {"arrowstyle": "-", "color": line_colour, "linewidth": 0.7, "shrinkB": 5, "shrinkA": 0},
        )
    return boxes


def _along(line: Sequence[tuple[float, float]], radius: float) -> list[Bbox]:
    """Return small boxes that cover a line in pixels."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(line):
        steps = max(1, round(math.hypot(x1 - x0, y1 - y0) / (2 * radius)))
        for step in range(steps + 1):
            x, y = x0 + (x1 - x0) * step / steps, y0 + (y1 - y0) * step / steps
            boxes.append(Bbox.from_extents(x - radius, y - radius, x + radius, y + radius))
    return boxes


def _box(x: float, y: float, width: float, height: float, angle: float, distance: float) -> Bbox:
    """Return the box of a name whose nearest edge or corner lies `distance` from (x, y) in direction `angle`."""
    cos, sin = round(math.cos(math.radians(angle)), 6), round(math.sin(math.radians(angle)), 6)
    left = x + distance * cos + width * (-0.5 if cos == 0 else 0 if cos > 0 else -1)
    bottom = y + distance * sin + height * (-0.5 if sin == 0 else 0 if sin > 0 else -1)
    return Bbox.from_bounds(left, bottom, width, height)


def _overlap(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Return the pixels of `box` that are covered already or lie outside the plot."""
    covered = sum(_shared(box, other) for other in taken)
    return covered + box.width * box.height - _shared(box, inside)


def _shared(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0
