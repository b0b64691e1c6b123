"""The report as one HTML page that needs nothing else: no scripts, no fonts, no requests; by day and by night."""

from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from mixdq.report.blocks import blocks
from mixdq.report.facts import ReportFacts, Variant
from mixdq.report.figures import Plot, pareto_plots, sensitivity_plots
from mixdq.report.pictures import data_uri, picture_uri
from mixdq.report.summary import (
    backends,
    headline,
    least_alike,
    main_table,
    mib,
    most_sensitive,
    number,
    refusals,
)
from mixdq.report.theme import BIT_COLOURS, DARK, LIGHT, on_colour
from mixdq.types.plan import FLOAT_BITS


@dataclass(frozen=True)
class _Shot:
    """A picture in the page: data URI, alternative text, and its likeness to floating point in words."""

    uri: str
    alt: str
    note: str


@dataclass(frozen=True)
class _Figure:
    light: str
    dark: str
    plot: Plot


def render_html(facts: ReportFacts) -> str:
    """Return the page. All text is escaped; pictures and plots are embedded.

    Raises:
        ArtifactFormatError: a picture is missing or unreadable.
    """
    environment = Environment(
        loader=PackageLoader("mixdq.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    titles, rows = main_table(facts)
    return environment.get_template("report.html.j2").render(
        facts=facts,
        tiles=headline(facts),
        titles=titles,
        rows=rows,
        grid=_grid(facts),
        least_alike=_least_alike(facts),
        pareto=_figures(pareto_plots(facts)),
        blocks=blocks(facts.layers),
        widths=_widths(facts),
        sensitivity=_figures(sensitivity_plots(facts)),
        most_sensitive=most_sensitive(facts),
        receipts=[(receipt, backends(receipt), refusals(receipt)) for receipt in facts.receipts],
        planned=[variant for variant in facts.variants if variant.plan is not None],
        bit_colours={bits: (fill, on_colour(fill)) for bits, fill in BIT_COLOURS.items()},
        float_bits=FLOAT_BITS,
        mib=mib,
        number=number,
    )


def _widths(facts: ReportFacts) -> list[int]:
    """Return every width in the mixed plans, weights and activations."""
    plans = [variant.plan for variant in facts.mixed if variant.plan is not None]
    return sorted({width for plan in plans for b in plan.layers.values() for width in (b.weight, b.activation)})


def _figures(plots: list[Plot]) -> list[_Figure]:
    figures = []
    for plot in plots:
        light, dark = plot.draw(LIGHT), plot.draw(DARK)
        if light is not None and dark is not None:
            figures.append(_Figure(data_uri(light, "image/svg+xml"), data_uri(dark, "image/svg+xml"), plot))
    return figures


def _grid(facts: ReportFacts) -> list[tuple[str, list[_Shot]]]:
    """Return (prompt, one picture a variant) for each row that is shown."""
    shown = min(facts.shown_prompts, len(facts.prompts))
    files = [variant.picture_files(shown) for variant in facts.variants]
    return [
        (
            facts.prompts[row],
            [
                _shot(facts, variant, row, picture_uri(column[row]))
                for variant, column in zip(facts.variants, files, strict=True)
            ],
        )
        for row in range(shown)
    ]


def _least_alike(facts: ReportFacts) -> list[tuple[Variant, str, _Shot, _Shot]]:
    """Return (variant, prompt, floating-point picture, its picture) where the two differ most."""
    rows = []
    for variant, index, _ in least_alike(facts):
        pair = [
            _shot(facts, side, index, picture_uri(side.picture_files(index + 1)[index]))
            for side in (facts.reference, variant)
        ]
        rows.append((variant, facts.prompts[index], pair[0], pair[1]))
    return rows


def _shot(facts: ReportFacts, variant: Variant, index: int, uri: str) -> _Shot:
    values = variant.evaluation.per_picture.get("ssim", ())
    note = f"SSIM {number(values[index], 3)}" if values and variant is not facts.reference else ""
    return _Shot(uri, f"{variant.name}: {facts.prompts[index]}", note)
