import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mixdq.runtime.kernels.gpu import tuning
from mixdq.runtime.kernels.gpu.configurations import Card, Configuration, Sizes, by_estimate

CARD = Card(capability=(9, 0), multiprocessors=7)
SIZES = Sizes(rows=64, columns=320, groups=1, steps=5, depth=640, tile=128, weight_bits=8, input_bytes=1, of_codes=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A cache folder that is empty; nothing of it is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    yield tmp_path / "mixdq" / tuning.FILE
    forget()


def forget() -> None:
    tuning._REFUSED.clear()
    tuning._known.cache_clear()
    tuning.configuration.cache_clear()


def keep(cache: Path, *known: tuple[Card, Sizes, Configuration]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    tuning._keep({(card, sizes): choice for card, sizes, choice in known})
    forget()


def test_the_fastest_of_the_best_looking_is_kept_at_once_and_found_by_a_later_process(cache: Path) -> None:
    ran: list[Configuration] = []
    wanted = by_estimate(SIZES, CARD)[3]

    def timer(call) -> float | None:
        call()
        return {wanted: 1.0, by_estimate(SIZES, CARD)[0]: None}.get(ran[-1], 2.0)

    with tuning.tuning(timer) as tuner:
        assert tuner.best(SIZES, CARD, ran.append) == wanted
        assert len(ran) == tuning.MEASURED
        assert tuner.best(SIZES, CARD, ran.append) == wanted
        assert len(ran) == tuning.MEASURED
        assert json.loads(cache.read_text(encoding="utf-8"))
    assert tuning.TUNER.get() is None
    forget()
    assert tuning.configuration(SIZES, CARD) == wanted
    # What is far from it, or another product, knows nothing of it.
    for other in (replace(SIZES, rows=tuning.NEAR * 64 + 1), replace(SIZES, columns=640)):
        assert tuning.configuration(other, CARD) == by_estimate(other, CARD)[0]
    # Nobody measures it again, unless the card refuses it.
    with tuning.tuning(timer) as tuner:
        assert tuner.best(SIZES, CARD, ran.append) == wanted
        assert len(ran) == tuning.MEASURED
        assert not tuner.measured
        tuning.another(SIZES, CARD, wanted, ValueError("out of resource: shared memory"))
        tuner.best(SIZES, CARD, ran.append)
        assert len(ran) == 2 * tuning.MEASURED
        assert list(tuner.measured) == [(CARD, SIZES)]


def test_what_no_card_can_run_leaves_the_estimate_which_is_not_kept_as_measured(cache: Path) -> None:
    with tuning.tuning(lambda _: None) as tuner:
        assert tuner.best(SIZES, CARD, lambda _: None) == by_estimate(SIZES, CARD)[0]
    assert not tuner.measured
    assert not cache.exists()


def test_what_was_measured_serves_the_nearest_rows_and_then_the_nearest_cards_of_the_same_capability(
    cache: Path,
) -> None:
    likely = by_estimate(SIZES, CARD)[1:6]
    others = [(60, 7), (65, 8), (65, 14), (128, 7), (64 * tuning.NEAR, 7)]
    known = [
        (replace(CARD, multiprocessors=count), replace(SIZES, rows=rows), choice)
        for (rows, count), choice in zip(others, likely, strict=True)
    ]
    far = [
        (CARD, replace(SIZES, rows=64 * tuning.NEAR + 1), likely[0]),
        (replace(CARD, capability=(8, 0)), SIZES, likely[0]),
        *((CARD, replace(SIZES, **{name: getattr(SIZES, name) * 2}), likely[0]) for name in ("columns", "groups")),
        *((CARD, replace(SIZES, **{name: getattr(SIZES, name) * 2}), likely[0]) for name in ("steps", "depth", "tile")),
        (CARD, replace(SIZES, weight_bits=4), likely[0]),
        (CARD, replace(SIZES, input_bytes=2, of_codes=False), likely[0]),
    ]
    # The nearest first: 65 rows, on 8 multiprocessors and on 14; then 60, 128 and 256.
    for i in (1, 2, 0, 3, 4):
        keep(cache, *known, *far)
        assert tuning.configuration(SIZES, CARD) == known[i][2]
        known[i] = far[0]
        cache.unlink()
    keep(cache, *known, *far)
    assert tuning.configuration(SIZES, CARD) == by_estimate(SIZES, CARD)[0]


def test_a_neighbours_configuration_is_taken_only_where_it_would_be_measured_itself(cache: Path) -> None:
    estimates = by_estimate(SIZES, CARD)
    neighbour = replace(SIZES, rows=65)
    # A split of more parts than there are steps; one that looks too slow to be measured.
    for unlikely in (Configuration(rows=16, columns=64, split=16, warps=4, stages=4), estimates[tuning.MEASURED]):
        keep(cache, (CARD, neighbour, unlikely))
        assert tuning.configuration(SIZES, CARD) == estimates[0]
        assert tuning.configuration(neighbour, CARD) == unlikely


def test_names_in_the_file_say_the_card_and_the_product(cache: Path) -> None:
    chosen = by_estimate(SIZES, CARD)[2]
    cards = [CARD, replace(CARD, capability=(12, 0)), replace(CARD, capability=(8, 9), multiprocessors=128)]
    floats = replace(SIZES, input_bytes=2, of_codes=False)
    known = {(card, sizes): chosen for card in cards for sizes in (SIZES, floats)}
    keep(cache, *((card, sizes, chosen) for card, sizes in known))
    assert tuning._read(cache) == known
    written = json.loads(cache.read_text(encoding="utf-8"))
    assert written.keys() == {"sm_90 x 7", "sm_120 x 7", "sm_89 x 128"}
    assert written["sm_90 x 7"].keys() == {"64 320 1 5 640 128 8 1 1", "64 320 1 5 640 128 8 2 0"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"sm_90 x 7": 1}',
        '{"sm_90 x 7": {"a": [1]}}',
        *(
            json.dumps({card: {sizes: numbers}})
            for card, sizes, numbers in (
                ("sm_90 x 7", "64 320 1 5 640 128 8 1 1", [64, 64, 1, 4]),
                ("sm_90 x 7", "64 320 1 5 640 128 8 1 1", [64, 64, 1, 4, 0]),
                ("sm_90 x 7", "64 320 1 5 640 128 8 1", [64, 64, 1, 4, 2]),
                ("sm_90 x 7", "0 320 1 5 640 128 8 1 1", [64, 64, 1, 4, 2]),
                ("sm_90 x 0", "64 320 1 5 640 128 8 1 1", [64, 64, 1, 4, 2]),
                ("sm_90", "64 320 1 5 640 128 8 1 1", [64, 64, 1, 4, 2]),
            )
        ),
    ],
)
def test_a_damaged_file_is_as_none(cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text, encoding="utf-8")
    assert tuning.configuration(SIZES, CARD) == by_estimate(SIZES, CARD)[0]


def test_what_a_card_refuses_is_not_chosen_again_and_said_once(cache: Path, caplog) -> None:
    kept = Configuration(rows=64, columns=128, split=1, warps=4, stages=9)
    keep(cache, (CARD, SIZES, kept))
    assert tuning.configuration(SIZES, CARD) == kept
    why = ValueError("out of resource: shared memory")
    estimates = by_estimate(SIZES, CARD)
    assert tuning.another(SIZES, CARD, kept, why) == estimates[0]
    assert tuning.configuration(SIZES, CARD) == estimates[0]
    assert "out of resource" in caplog.text
    for refused, following in itertools.pairwise(estimates):
        assert tuning.another(SIZES, CARD, refused, why) == following
    with pytest.raises(ValueError, match="out of resource"):
        tuning.another(SIZES, CARD, estimates[-1], why)
