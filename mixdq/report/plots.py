"""The curves of a report: sensitivity of the layers, and size against quality."""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mixdq.report.labels import place_labels
from mixdq.report.summary import MIB
from mixdq.report.theme import MARKERS, SERIES, Theme, svg
from mixdq.types.evaluation import Evaluation
from mixdq.types.layers import GROUPS, LayerTable
from mixdq.types.scores import Role, Score, SensitivityTable

_DASHES = ("-", "--", "-.", ":")
_LEAST_LOSS = 1e-6
"""1 - SSIM below this is drawn as this: a logarithm has no place for "identical"."""


def sensitivity_plot(sensitivity: SensitivityTable, table: LayerTable, role: Role, theme: Theme) -> bytes | None:
    """Return an SVG: a panel for each group and metric, a line for each width, layers from most to least sensitive.

    Each line is sorted by itself; where some scores of `role` are estimates, those that were measured are dots. SSIM is
    drawn as the logarithm of what is missing to 1. None where there is no score of `role`.
    """
    panels = []
    for group in GROUPS:
        names = {layer.name for layer in table if layer.group == group}
        for metric in dict.fromkeys(score.metric for score in sensitivity.scores if score.role == role):
            by_bits: dict[int, list[Score]] = {}
            for score in sensitivity.scores:
                if score.role == role and score.metric == metric and score.layer in names:
                    by_bits.setdefault(score.num_bits, []).append(score)
            if by_bits:
                panels.append((group, metric, by_bits))
    if not panels:
        return None
    estimated = any(score.stderr is not None for _, _, by_bits in panels for each in by_bits.values() for score in each)
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.3 * columns, 3.1 * rows), layout="constrained")
    for index, (group, metric, by_bits) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        style(axes, theme)
        _sensitivity_panel(axes, metric, by_bits, theme, estimated=estimated)
        count = max(len(scores) for scores in by_bits.values())
        axes.set_title(f"{group}: {count} layers", loc="left", fontsize=10, fontweight="bold", color=theme.ink)
    return svg(figure)


def _sensitivity_panel(
    axes: Axes, metric: str, by_bits: dict[int, list[Score]], theme: Theme, *, estimated: bool
) -> None:
    finite = [score.value for scores in by_bits.values() for score in scores if math.isfinite(score.value)]
    ceiling = max(finite, default=0.0)
    for index, (num_bits, scores) in enumerate(sorted(by_bits.items())):
        points = sorted((_height(metric, score.value, ceiling), score.stderr is None) for score in scores)
        heights = [height for height, _ in points]
        dots = [index for index, (_, measured) in enumerate(points) if measured or len(points) == 1]
        axes.plot(
            range(1, len(heights) + 1),
            heights,
            color=theme.bits(num_bits),
            linestyle=_DASHES[index % len(_DASHES)],
            linewidth=2,
            marker="o" if estimated or len(heights) < 3 else None,
            markevery=dots if estimated else None,
            markersize=4 if estimated else 6,
            # A layer alone is no line.
            markerfacecolor="none" if len(points) == 1 and not points[0][1] else None,
            label=f"{num_bits} bit",
        )
    if metric == "ssim":
        low, high = axes.get_ylim()
        losses = (1, 0.5, 0.2) if high - low < 2 else (1,)
        ticks = [-math.log10(loss * 10.0**-decade) for decade in range(7) for loss in losses]
        axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{1 - 10.0**-y:.6g}"))
    axes.set_xlabel("layers, the most sensitive first", fontsize=8.5, color=theme.muted)
    axes.set_ylabel("SSIM" if metric == "ssim" else f"{metric.upper()}, dB", fontsize=8.5, color=theme.muted)
    axes.legend(fontsize=8, frameon=False, loc="lower right", labelcolor=theme.ink, handlelength=3.2)


def _height(metric: str, value: float, ceiling: float) -> float:
    if metric == "ssim":
        return -math.log10(max(1 - value, _LEAST_LOSS))
    return value if math.isfinite(value) else ceiling


def pareto_plot(
    evaluations: Sequence[Evaluation],
    value: Callable[[Evaluation], float | None],
    title: str,
    theme: Theme,
) -> bytes | None:
    """Return an SVG of size against `value` (higher is better), the first evaluation being the floating-point model.

    The line joins the variants that no other beats in both. None where fewer than two have a finite value.
    """
    points = [(e, e.weight_bytes / MIB, value(e)) for e in evaluations]
    drawn = [(e, x, y) for e, x, y in points if y is not None and math.isfinite(y)]
    if len(drawn) < 2:
        return None
    figure = Figure(figsize=(5.4, 3.7), layout="constrained")
    axes = figure.add_subplot()
    style(axes, theme)
    front = _front([(x, y) for _, x, y in drawn])
    axes.plot(*zip(*front, strict=True), color=theme.muted, linewidth=1.2, linestyle="--", zorder=1)
    methods = list(dict.fromkeys(e.method for e, _, _ in drawn))
    for method in methods:
        index = methods.index(method)
        axes.scatter(
            [x for e, x, _ in drawn if e.method == method],
            [y for e, _, y in drawn if e.method == method],
            s=70,
            color=SERIES[index % len(SERIES)],
            marker=MARKERS[index % len(MARKERS)],
            edgecolor=theme.surface,
            linewidth=0.8,
            zorder=3,
            label=method,
        )
    axes.margins(0.14, 0.14)
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.set_xlabel("weights on disk, MiB (smaller is better)", fontsize=9, color=theme.muted)
    axes.set_ylabel(f"{title} (higher is better)", fontsize=9, color=theme.muted)
    place_labels(axes, [(x, y, e.name) for e, x, y in drawn], line=front, colour=theme.ink, line_colour=theme.muted)
    return svg(figure)


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that are better than every smaller one, by size."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def style(axes: Axes, theme: Theme) -> None:
    """Give a plot the theme's lines and letters."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.line)
    axes.grid(True, color=theme.line, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, labelsize=8.5, length=0)
    axes.yaxis.set_minor_locator(NullLocator())
