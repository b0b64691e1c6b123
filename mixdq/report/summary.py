"""The numbers of a report as words: the main table with its best values, the headline, and who ran which layer."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixdq.report.facts import ReportFacts, Variant
from mixdq.types.evaluation import Evaluation
from mixdq.types.receipt import Receipt

MIB = 2**20
TIMES = "\N{MULTIPLICATION SIGN}"
NOISE = 1.2
"""Times that the seconds of two models may differ by chance: they are timed one after the other, on a busy machine."""


@dataclass(frozen=True)
class Cell:
    """One number as text; `note` is smaller print beside it, `best` marks the best quantized variant."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Tile:
    """One headline: a number, what it is, and of whom."""

    value: str
    label: str
    detail: str


@dataclass(frozen=True)
class _Column:
    title: str
    value: Callable[[Evaluation], float | None]
    text: Callable[[float], str]
    best: Callable[[Sequence[float]], float] | None = None
    ratio: bool = False


def number(value: float, digits: int) -> str:
    """Return `value` with `digits` decimals; infinity, where nothing differs, is a word.

    >>> number(0.98765, 3), number(float("inf"), 1)
    ('0.988', 'identical')
    """
    return "identical" if math.isinf(value) and value > 0 else f"{value:.{digits}f}"


def mib(count: float) -> str:
    """Return bytes in MiB with three digits or so.

    >>> mib(3 * 2**20), mib(5138 * 2**20)
    ('3.00', '5138')
    """
    size = count / MIB
    return f"{size:.2f}" if size < 10 else f"{size:.1f}" if size < 1000 else f"{size:.0f}"


def duration(value: float) -> str:
    """Return seconds with three significant digits."""
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


_COLUMNS = (
    _Column("Weight bits", lambda e: e.weight_bits, lambda v: f"{v:.2f}"),
    _Column("Activation bits", lambda e: e.activation_bits, lambda v: f"{v:.2f}"),
    _Column("Weights, MiB", lambda e: e.weight_bytes, mib, min, ratio=True),
    _Column("SSIM", lambda e: e.ssim, lambda v: number(v, 4), max),
    _Column("PSNR, dB", lambda e: e.psnr_db, lambda v: number(v, 1), max),
    _Column("SQNR, dB", lambda e: e.sqnr_db, lambda v: number(v, 1), max),
    _Column("CLIP score", lambda e: e.clip_score, lambda v: number(v, 4), max),
    _Column("Seconds a picture", lambda e: e.seconds, duration, min, ratio=True),
    _Column("Peak memory, MiB", lambda e: e.peak_memory, mib),
)


def main_table(facts: ReportFacts) -> tuple[list[str], list[tuple[Variant, list[Cell]]]]:
    """Return the titles, and for each variant its cells; columns that nobody measured are left out.

    The best of the quantized variants is marked as printed, so that equal prints are marked alike.
    """
    titles: list[str] = []
    rows: list[tuple[Variant, list[Cell]]] = [(variant, []) for variant in facts.variants]
    for column in _COLUMNS:
        values = [column.value(variant.evaluation) for variant in facts.variants]
        if all(value is None for value in values):
            continue
        titles.append(column.title)
        quantized = [value for value in values[1:] if value is not None]
        best = column.text(column.best(quantized)) if column.best and len(quantized) > 1 else None
        for index, ((_, cells), value) in enumerate(zip(rows, values, strict=True)):
            if value is None:
                cells.append(Cell("-"))
                continue
            text = column.text(value)
            base = values[0]
            note = f"{base / value:.2f}{TIMES}" if column.ratio and index and base and value else ""
            cells.append(Cell(text, note, best=bool(index) and text == best))
    return titles, rows


def headline(facts: ReportFacts) -> list[Tile]:
    """Return what to remember, taken from the variants whose plan a solver found, else from all quantized ones."""
    pool = [v.evaluation for v in facts.variants[1:] if v.plan is not None and v.plan.solver is not None]
    pool = pool or [variant.evaluation for variant in facts.variants[1:]]
    if not pool:
        return []
    base = facts.reference.evaluation
    tiles = []
    small = min(pool, key=lambda e: e.weight_bytes)
    if small.weight_bytes and base.weight_bytes:
        sizes = f"{mib(small.weight_bytes)} MiB instead of {mib(base.weight_bytes)}"
        tiles.append(
            Tile(
                f"{base.weight_bytes / small.weight_bytes:.1f}{TIMES}",
                "smaller",
                f"{small.name}: {sizes}, SSIM {number(small.ssim, 3)}",
            )
        )
    close = max(pool, key=lambda e: e.ssim)
    tiles.append(
        Tile(number(close.ssim, 3), "SSIM", f"{close.name}: pictures closest to floating point; 1 is identical")
    )
    if close.clip_score is not None and base.clip_score is not None and base.clip_score > 0:
        kept = f"{100 * close.clip_score / base.clip_score:.1f} %"
        scores = f"{number(close.clip_score, 4)} against {number(base.clip_score, 4)}"
        tiles.append(Tile(kept, "of the CLIP score", f"{close.name}: {scores}"))
    if small.seconds and base.seconds and not _by_reference_alone(facts):
        tiles.append(_speed(small, base))
    return tiles


def _speed(one: Evaluation, base: Evaluation) -> Tile:
    """Return how much faster the smallest variant is: the fastest of several may be the fastest by chance."""
    ratio = base.seconds / one.seconds
    times = f"{one.name}: {duration(one.seconds)} s a picture instead of {duration(base.seconds)}"
    if max(ratio, 1 / ratio) < NOISE:
        return Tile(f"1{TIMES}", "as fast", f"{times}; so small a difference may be chance")
    value, word = (f"{ratio:.2f}{TIMES}", "faster") if ratio >= 1 else (f"{1 / ratio:.2f}{TIMES}", "slower")
    return Tile(value, word, times)


def _by_reference_alone(facts: ReportFacts) -> bool:
    """Return whether nothing but the slow reference backend ran, whose seconds are no one's headline."""
    ran = {layer.backend for receipt in facts.receipts for layer in receipt.layers if layer.backend is not None}
    return ran == {"reference"}


def backends(receipt: Receipt) -> list[tuple[str, str, int]]:
    """Return (backend, bits, layers) of a receipt, the most frequent first."""
    count = Counter((layer.backend or "floating point", str(layer.bits)) for layer in receipt.layers)
    return [(backend, bits, layers) for (backend, bits), layers in count.most_common()]


def refusals(receipt: Receipt) -> list[tuple[str, str, list[str]]]:
    """Return (backend, reason, layers) for every refusal of a receipt, the most frequent first."""
    found: dict[tuple[str, str], list[str]] = {}
    for layer in receipt.layers:
        for backend, reasons in layer.refusals.items():
            for reason in reasons:
                found.setdefault((backend, reason), []).append(layer.layer)
    return sorted(
        ((backend, reason, layers) for (backend, reason), layers in found.items()), key=lambda row: -len(row[2])
    )


def most_sensitive(facts: ReportFacts, count: int = 5) -> list[tuple[str, str, int, list[tuple[str, str]]]]:
    """Return (role, group and metric, bits, [(layer, value)]): the layers that suffer most at the least width."""
    if facts.sensitivity is None:
        return []
    group_of = {layer.name: layer.group for layer in facts.layers}
    tables: dict[tuple[str, str, str], dict[int, list[tuple[float, str]]]] = {}
    for score in facts.sensitivity.scores:
        key = (score.role, group_of.get(score.layer, "other"), score.metric)
        tables.setdefault(key, {}).setdefault(score.num_bits, []).append((score.value, score.layer))
    rows = []
    for (role, group, metric), by_bits in tables.items():
        bits = min(by_bits)
        digits = 4 if metric == "ssim" else 1
        lowest = [(layer, number(value, digits)) for value, layer in sorted(by_bits[bits])[:count]]
        rows.append((role, f"{group}, {metric.upper()}", bits, lowest))
    return rows


def least_alike(facts: ReportFacts) -> list[tuple[Variant, int, float]]:
    """Return for each quantized variant its picture that is least like floating point: (variant, index, SSIM)."""
    rows = []
    for variant in facts.variants[1:]:
        values = variant.evaluation.per_picture.get("ssim", ())
        if values:
            index = min(range(len(values)), key=values.__getitem__)
            rows.append((variant, index, values[index]))
    return rows
