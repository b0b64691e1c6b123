from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from mixdq.report.labels import place_labels


def overlap(a: Bbox, b: Bbox) -> bool:
    return min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0)


def test_labels_of_crowded_points_do_not_overlap() -> None:
    axes = Figure(figsize=(6, 4)).add_subplot()
    points = [(10 + 0.01 * i, 0.9 + 0.001 * i, f"variant {i}") for i in range(6)] + [(20.0, 0.2, "alone")]
    axes.scatter([x for x, _, _ in points], [y for _, y, _ in points])
    axes.margins(0.2)
    boxes = place_labels(axes, points, colour="black", line_colour="grey")
    assert len(boxes) == len(points)
    assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_labels_keep_off_the_line() -> None:
    axes = Figure(figsize=(6, 4)).add_subplot()
    points = [(0.0, 0.0, "left"), (1.0, 0.0, "right")]
    axes.scatter([0, 1], [0, 0])
    axes.margins(0.3)
    boxes = place_labels(axes, points, line=[(0, 0), (1, 0)], colour="black", line_colour="grey")
    y = axes.transData.transform((0, 0))[1]
    between = axes.transData.transform([(0, 0), (1, 0)])[:, 0]
    for box in boxes:
        inside = min(box.x1, between[1]) > max(box.x0, between[0])
        assert not (inside and box.y0 < y < box.y1)
