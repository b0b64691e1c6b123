"""The tables that `benchmarks.sensitivity` prints."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from mixdq.metrics.base import Metric


def costs(rows: Sequence[Mapping[str, object]]) -> Table:
    """Return what each method cost."""
    made = Table(title="Cost of a sensitivity table; calls of the denoiser on all prompts, a backward pass counts two")
    for name in ("method", "calls", "of published", "seconds", "scores measured exactly"):
        made.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        made.add_row(
            str(row["name"]),
            f"{row['calls']:.1f}",
            f"{row['share']:.3f}",
            f"{row['seconds']:.0f}",
            str(row["measured"]),
        )
    return made


def agreement(rows: Sequence[Mapping[str, object]]) -> Table:
    """Return how estimates compare with exact scores."""
    made = Table(title="Sketched scores against exact ones; SSIM as -10 log10(1 - SSIM)")
    for name in ("group", "role", "bits", "layers", "Spearman", "median error, dB", "range, dB"):
        made.add_column(name, justify="left" if name in ("group", "role") else "right")
    for row in rows:
        made.add_row(
            *(str(row[key]) for key in ("group", "role", "bits", "layers")),
            f"{row['spearman']:.3f}",
            f"{row['median_error_db']:.2f}",
            f"{row['range_db']:.0f}",
        )
    return made


def pictures(rows: Sequence[Mapping[str, object]], metrics: Sequence[Metric]) -> Table:
    """Return the numbers of the pictures."""
    made = Table(title="Held-out pictures by the plans that follow, A8")
    columns = ["budget, bits", "plan by", "mean bits", "weights, bytes", *(metric.name for metric in metrics)]
    for name in (*columns, "ssim beyond exact's"):
        made.add_column(name, justify="left" if name == "plan by" else "right")
    for row in rows:
        made.add_row(
            f"{row['budget']:g}",
            str(row["name"]),
            f"{row['weight_bits']:.3f}",
            str(row["weight_bytes"] or ""),
            *(f"{row[metric.name]:.4f}" for metric in metrics),
            f"{row['beyond_exact']:+.5f} ({row['beyond_exact_stderr']:.5f})" if "beyond_exact" in row else "",
        )
    return made
