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


def test_the_fastest_of_the_best_looking_is_kept_and_found_by_a_later_process(cache: Path) -> None:
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
    assert tuning.TUNER.get() is None
    forget()
    assert tuning.configuration(SIZES, CARD) == wanted
    assert json.loads(cache.read_text(encoding="utf-8"))
    # Another card or size knows nothing of it.
    for sizes, card in ((replace(SIZES, rows=65), CARD), (SIZES, replace(CARD, multiprocessors=8))):
        assert tuning.configuration(sizes, card) == by_estimate(sizes, card)[0]


def test_what_no_card_can_run_leaves_the_estimate() -> None:
    with tuning.tuning(lambda _: None) as tuner:
        assert tuner.best(SIZES, CARD, lambda _: None) == by_estimate(SIZES, CARD)[0]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"sm_90 x 7": 1}', '{"sm_90 x 7": {"a": [1]}}', '{"sm_90 x 7": {"a": ["x"]}}']
)
def test_a_damaged_file_is_as_none(cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text, encoding="utf-8")
    assert tuning.configuration(SIZES, CARD) == by_estimate(SIZES, CARD)[0]


def test_what_a_card_refuses_is_not_chosen_again_and_said_once(cache: Path, caplog) -> None:
    cache.parent.mkdir(parents=True)
    kept = Configuration(rows=64, columns=128, split=1, warps=4, stages=9)
    cache.write_text(json.dumps({"sm_90 x 7": {tuning._size_name(SIZES): [64, 128, 1, 4, 9]}}), encoding="utf-8")
    assert tuning.configuration(SIZES, CARD) == kept
    why = ValueError("out of resource: shared memory")
    estimates = by_estimate(SIZES, CARD)
    assert tuning.another(SIZES, CARD, kept, why) == estimates[0]
    assert tuning.configuration(SIZES, CARD) == estimates[0]
    assert "out of resource" in caplog.text
    assert tuning.configuration(replace(SIZES, rows=65), CARD) == by_estimate(replace(SIZES, rows=65), CARD)[0]
    for refused, following in itertools.pairwise(estimates):
        assert tuning.another(SIZES, CARD, refused, why) == following
    with pytest.raises(ValueError, match="out of resource"):
        tuning.another(SIZES, CARD, estimates[-1], why)
