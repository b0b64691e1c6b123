"""The curve of a frontier: a budget against the error that it cannot be without."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from mixdq.report.plots import style
from mixdq.report.theme import SERIES, Theme, svg
from mixdq.types.plan import BitPlan

_LEAST_ERROR = 1e-6

LABELS = {
    "weight_bits": "mean bits of a weight",
    "weight_bytes": "bytes of all weights",
    "latency_ms": "milliseconds of one denoiser call",
}


def frontier_plot(setting: str, plans: Mapping[float, BitPlan], theme: Theme) -> bytes:
    """Return an SVG of budget -> predicted error (1 - SSIM, logarithmic) of the best plan; equal plans, equal bytes."""
    figure = Figure(figsize=(5.4, 3.7), layout="constrained")
    axes = figure.add_subplot()
    style(axes, theme)
    errors = [plan.solver.values["predicted_error"] for plan in plans.values() if plan.solver is not None]
    axes.plot(list(plans), [max(error, _LEAST_ERROR) for error in errors], color=SERIES[0], marker="o", markersize=3)
    axes.set_yscale("log")
    axes.set_xlabel(LABELS[setting], fontsize=9, color=theme.muted)
    axes.set_ylabel("predicted error, 1 - SSIM", fontsize=9, color=theme.muted)
    return svg(figure)
