"""The report in Markdown: the same numbers, with links to pictures and plots instead of the files themselves."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from mixdq.report.facts import ReportFacts
from mixdq.report.figures import Plot, bit_maps, pareto_plots, sensitivity_plots
from mixdq.report.summary import backends, headline, main_table, mib, most_sensitive, refusals
from mixdq.report.theme import LIGHT

PLOTS_FOLDER = "plots"


def render_markdown(facts: ReportFacts, out: Path) -> tuple[str, dict[str, bytes]]:
    """Return the text of `out`/report.md, and the plots it links to: path below `out` -> SVG."""
    plots: dict[str, bytes] = {}
    parts = [f"# {escape(facts.title)}", f"Model: {code(facts.model)}, {len(facts.layers)} quantizable layers."]
    parts += [f"- **{escape(tile.value)} {escape(tile.label)}**: {escape(tile.detail)}" for tile in headline(facts)]
    if facts.warnings:
        parts += ["## Read this first", *(f"- {escape(warning)}" for warning in facts.warnings)]
    parts += ["## Pictures", _pictures(facts, out)]
    parts += ["## Numbers", "Against the floating-point model, same prompts and seeds; best in bold.", _numbers(facts)]
    parts += _plots(pareto_plots(facts), plots)
    if any(variant.plan is not None for variant in facts.variants):
        parts += ["## Bits", *(part for v in facts.mixed for part in _plots(bit_maps(facts, v), plots)), _plans(facts)]
    parts += ["## Sensitivity", *_plots(sensitivity_plots(facts), plots)] if facts.sensitivity else []
    for role, group, bits, lowest in most_sensitive(facts):
        names = ", ".join(f"{code(layer)} ({value})" for layer, value in lowest)
        parts.append(f"- Most sensitive {role}s at {bits} bits ({escape(group)}): {names}")
    for plan, scores in facts.candidates.items():
        parts += [f"### Plans that {escape(plan)} was chosen from", _table(["plan", "score"], _scores(scores))]
    for receipt in facts.receipts:
        parts += [
            f"## Who runs what: {escape(receipt.plan)}",
            f"{mib(receipt.bytes_before)} MiB at 16 bits became {mib(receipt.bytes_after)} MiB.",
            _table(["backend", "bits", "layers"], [(b, w, str(n)) for b, w, n in backends(receipt)]),
        ]
        reasons = [(b, reason, f"{len(names)}: {', '.join(names)}") for b, reason, names in refusals(receipt)]
        parts.append(_table(["backend", "refused because", "layers"], reasons) if reasons else "No backend refused.")
    parts += ["## Settings", _table(["setting", "value"], facts.settings.items())]
    parts += ["## Environment", _table(["what", "value"], facts.environment.items())]
    return _join(parts), plots


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line.

    >>> escape("a|b <i>*x*")
    'a\\\\|b &lt;i&gt;\\\\*x\\\\*'
    """
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]#|~!])", r"\\\1", line)


def code(text: str) -> str:
    """Return a name in code style where it can be, else escaped."""
    return escape(text) if re.search(r"[`|<>\n]", text) else f"`{text}`"


def _pictures(facts: ReportFacts, out: Path) -> str:
    shown = min(facts.shown_prompts, len(facts.prompts))
    files = [variant.picture_files(shown) for variant in facts.variants]
    header = ["prompt", *(variant.name for variant in facts.variants)]
    rows = [
        [escape(facts.prompts[row]), *(f"![]({quote(_relative(column[row], out))})" for column in files)]
        for row in range(shown)
    ]
    note = "" if shown == len(facts.prompts) else f"\n\nThe first {shown} of {len(facts.prompts)} prompts."
    return _raw_table([escape(title) for title in header], rows) + note


def _numbers(facts: ReportFacts) -> str:
    titles, rows = main_table(facts)
    body = []
    for variant, cells in rows:
        texts = [f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in cells]
        marked = [f"**{text}**" if cell.best else text for text, cell in zip(texts, cells, strict=True)]
        body.append([escape(variant.name), *marked])
    return _raw_table(["", *titles], body)


def _plans(facts: ReportFacts) -> str:
    planned = [(variant.name, variant.plan) for variant in facts.variants if variant.plan is not None]
    rows = [
        [code(layer.name), layer.group, *(str(plan.layers.get(layer.name, "-")) for _, plan in planned)]
        for layer in facts.layers
    ]
    return _raw_table(["layer", "group", *(escape(name) for name, _ in planned)], rows)


def _scores(scores: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    return [(name, f"{score:.5g}") for name, score in sorted(scores, key=lambda row: -row[1])]


def _plots(wanted: Iterable[Plot], plots: dict[str, bytes]) -> list[str]:
    parts = []
    for plot in wanted:
        drawn = plot.draw(LIGHT)
        if drawn is not None:
            path = f"{PLOTS_FOLDER}/{plot.key}.svg"
            plots[path] = drawn
            parts.append(f"![{escape(plot.title)}]({path})\n\n{escape(plot.text)}")
    return parts


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out)).as_posix()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _raw_table([escape(cell) for cell in header], [[escape(cell) for cell in row] for row in rows])


def _raw_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _join(parts: Sequence[str]) -> str:
    """Join by blank lines, list items by single ones."""
    text = ""
    for before, part in zip(("", *parts), parts, strict=False):
        text += ("" if not before else "\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text + "\n"
