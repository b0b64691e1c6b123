"""The bit-width map of a model as a plot: a row for each block, a cell for each layer, coloured and numbered by bits.

The HTML page draws the same map by itself, with a name behind each cell.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mixdq.report.blocks import blocks
from mixdq.report.theme import Theme, on_colour, svg
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import FLOAT_BITS, BitPlan
from mixdq.types.scores import Role

_COLUMNS = 24
_CELL_INCHES = 0.27
_LABEL_INCHES = 2.5
_CELL_AREA = (0.86 * _CELL_INCHES * 72) ** 2
_LEGEND_ROW = -1.5


def bit_map(plan: BitPlan, table: LayerTable, role: Role, theme: Theme) -> bytes:
    """Return an SVG map of the weight or activation bits of every layer of `table`, in its order.

    Circles are content layers, squares quality layers; a dash stands for floating point. Blocks of more than 24 layers
    go on in the next line. Layers that the plan does not know are floating point.
    """
    lines = [
        (name if start == 0 else "", layers[start : start + _COLUMNS])
        for name, layers in blocks(table)
        for start in range(0, len(layers), _COLUMNS)
    ]
    columns = max(16, *(len(layers) for _, layers in lines))
    # One layer a unit: [left edge of the labels, last column] by [legend, last line].
    left, right, bottom = -0.8 - _LABEL_INCHES / _CELL_INCHES, columns, len(lines)
    figure = Figure(figsize=((right - left) * _CELL_INCHES, (bottom + 2.5) * _CELL_INCHES))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, -2.5)
    axes.axis("off")
    cells: dict[tuple[int, bool], list[tuple[float, float]]] = {}
    for y, (label, layers) in enumerate(lines):
        axes.text(-0.9, y, _short(label), ha="right", va="center", fontsize=7.5, family="monospace", color=theme.muted)
        for x, layer in enumerate(layers):
            cells.setdefault((_bits(plan, layer, role), layer.group == "content"), []).append((x, y))
    for (num_bits, content), places in cells.items():
        _draw_cells(axes, places, num_bits, content, theme)
    _draw_legend(axes, sorted({num_bits for num_bits, _ in cells}), theme)
    return svg(figure, tight=False)


def _draw_cells(axes: Axes, places: Sequence[tuple[float, float]], num_bits: int, content: bool, theme: Theme) -> None:
    """Draw all cells of one width and group at once: digits are markers, since texts by the hundred are slow."""
    fill = theme.bits(num_bits)
    x, y = zip(*places, strict=True)
    axes.scatter(x, y, s=_CELL_AREA, marker="o" if content else "s", color=fill, linewidth=0)
    digit, size = ("_", 0.08) if num_bits == FLOAT_BITS else (f"${num_bits}$", 0.16)
    axes.scatter(x, y, s=_CELL_AREA * size, marker=digit, color=on_colour(fill), linewidth=0.8 if digit == "_" else 0)


def _draw_legend(axes: Axes, widths: Sequence[int], theme: Theme) -> None:
    x = 0.0
    for num_bits in widths:
        _draw_cells(axes, [(x, _LEGEND_ROW)], num_bits, False, theme)
        word = "float" if num_bits == FLOAT_BITS else f"{num_bits} bit"
        axes.text(x + 0.7, _LEGEND_ROW, word, va="center", fontsize=7.5, color=theme.ink)
        x += 2.7
    for marker, word in (("o", "content"), ("s", "quality")):
        axes.scatter(
            [x], [_LEGEND_ROW], s=_CELL_AREA, marker=marker, facecolor="none", edgecolor=theme.muted, linewidth=0.8
        )
        axes.text(x + 0.7, _LEGEND_ROW, word, va="center", fontsize=7.5, color=theme.ink)
        x += 3.3


def _bits(plan: BitPlan, layer: LayerSpec, role: Role) -> int:
    bits = plan.layers.get(layer.name)
    if bits is None:
        return FLOAT_BITS
    return bits.weight if role == "weight" else bits.activation


def _short(label: str, length: int = 40) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"
