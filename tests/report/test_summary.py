from dataclasses import replace

import pytest

from mixdq.report.facts import ReportFacts, Variant
from mixdq.report.summary import backends, headline, least_alike, main_table, most_sensitive, refusals


def test_best_is_marked_among_quantized_variants_only(facts: ReportFacts) -> None:
    titles, rows = main_table(facts)
    column = titles.index("SSIM")
    assert [(variant.name, cells[column].best) for variant, cells in rows] == [
        ("float", False),
        ("plain", False),
        ("mixed", True),
    ]
    assert rows[2][1][titles.index("Weights, MiB")].note == "3.20\N{MULTIPLICATION SIGN}"
    assert rows[0][1][titles.index("PSNR, dB")].text == "identical"


def test_column_that_nobody_measured_is_left_out(facts: ReportFacts) -> None:
    def without(variant: Variant) -> Variant:
        return replace(variant, evaluation=replace(variant.evaluation, clip_score=None))

    titles, _ = main_table(replace(facts, variants=tuple(without(v) for v in facts.variants)))
    assert "CLIP score" not in titles


def test_headline_speaks_of_solved_plans(facts: ReportFacts) -> None:
    tiles = headline(facts)
    assert tiles[0].value == "3.2\N{MULTIPLICATION SIGN}"
    assert all(tile.detail.startswith("mixed") for tile in tiles)


def test_headline_of_floating_point_alone_is_empty(facts: ReportFacts) -> None:
    assert headline(replace(facts, variants=facts.variants[:1])) == []


def test_every_refusal_is_kept_with_its_layers(facts: ReportFacts) -> None:
    receipt = facts.receipts[0]
    found = refusals(receipt)
    assert {(backend, reason) for backend, reason, _ in found} == {
        ("cuda", "needs a GPU, found none"),
        ("cpu", "2-bit weights are not packed"),
    }
    assert all(len(layers) == len(receipt.layers) for _, _, layers in found)
    assert backends(receipt) == [("reference", "W4A8", len(receipt.layers))]


def test_worst_picture_is_the_least_ssim(facts: ReportFacts) -> None:
    assert [(variant.name, index) for variant, index, _ in least_alike(facts)] == [("plain", 1), ("mixed", 1)]


def test_most_sensitive_layers_come_from_the_least_width(facts: ReportFacts) -> None:
    rows = most_sensitive(facts)
    assert {bits for _, _, bits, _ in rows} == {4}
    assert rows[0][3][0][1] == "24.0"


def test_the_reference_backends_seconds_are_no_headline(facts: ReportFacts) -> None:
    named = {layer.backend for receipt in facts.receipts for layer in receipt.layers}
    assert "reference" in named
    swift = replace(
        facts,
        receipts=tuple(
            replace(receipt, layers=tuple(replace(layer, backend="cpu") for layer in receipt.layers))
            for receipt in facts.receipts
        ),
    )
    slow = replace(
        facts,
        receipts=tuple(
            replace(receipt, layers=tuple(replace(layer, backend="reference") for layer in receipt.layers))
            for receipt in facts.receipts
        ),
    )
    words = {"faster", "as fast", "slower"}
    assert any(tile.label in words for tile in headline(swift))
    assert not any(tile.label in words for tile in headline(slow))


@pytest.mark.parametrize(
    ("seconds", "label"), [(0.5, "faster"), (0.84, "as fast"), (1.0, "as fast"), (1.19, "as fast"), (1.3, "slower")]
)
def test_speed_is_claimed_beyond_chance_only_and_of_the_smallest(facts: ReportFacts, seconds, label) -> None:
    timed = tuple(
        replace(variant, evaluation=replace(variant.evaluation, seconds=seconds if index else 1.0))
        for index, variant in enumerate(facts.variants)
    )
    receipts = tuple(
        replace(receipt, layers=tuple(replace(layer, backend="cpu") for layer in receipt.layers))
        for receipt in facts.receipts
    )
    tiles = headline(replace(facts, variants=timed, receipts=receipts))
    assert tiles[-1].label == label
    assert tiles[-1].detail.split(":")[0] == tiles[0].detail.split(":")[0]
