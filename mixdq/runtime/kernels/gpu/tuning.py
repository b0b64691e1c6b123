"""Configurations that were measured: shipped for some cards (`tuned.json`), found on this machine for others.

    with tuning():
        pipe(...)

measures the best-looking choices of every product that runs inside, once for each size, and keeps what it found in the
user's cache folder, where `configurations` finds it from then on. Results do not change: sums of codes are exact in any
tiles; sums of floats (weight-only layers) come out in another order.
"""

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import astuple
from pathlib import Path

from mixdq.runtime.kernels.compiler import cache_folder
from mixdq.runtime.kernels.gpu.configurations import Card, Configuration, Sizes, by_estimate

SHIPPED = Path(__file__).with_name("tuned.json")
FILE = "gpu-tuned.json"
MEASURED = 12
"""Choices that are measured of a size, the best by estimate."""

log = logging.getLogger(__name__)

Run = Callable[[Configuration], None]
Timer = Callable[[Callable[[], None]], float | None]
"""Returns the milliseconds of a call; None where the card cannot run it."""


class Tuner:
    """Measures each size of products once; `found` has the best configuration of each."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self.found: dict[tuple[Card, Sizes], Configuration] = {}

    def best(self, sizes: Sizes, card: Card, run: Run) -> Configuration:
        """Return the configuration in which `run` takes least time; the first by estimate where none runs."""
        key = card, sizes
        if key not in self.found:
            choices = by_estimate(sizes, card)[:MEASURED]
            times = {choice: self._timer(functools.partial(run, choice)) for choice in choices}
            known = {choice: time for choice, time in times.items() if time is not None}
            self.found[key] = min(known, key=lambda choice: known[choice]) if known else choices[0]
        return self.found[key]


TUNER: ContextVar[Tuner | None] = ContextVar("TUNER", default=None)
"""Who is asked for configurations, where `tuning` is under way."""


@contextmanager
def tuning(timer: Timer | None = None) -> Iterator[Tuner]:
    """Measure what runs inside, and keep it; `timer` is the device's own by default."""
    tuner = Tuner(timer or _device_ms)
    token = TUNER.set(tuner)
    try:
        yield tuner
    finally:
        TUNER.reset(token)
        _keep(tuner)


@functools.lru_cache(maxsize=4096)
def configuration(sizes: Sizes, card: Card) -> Configuration:
    """Return what was measured on such a card for such a product, else the first choice by estimate."""
    return _usable(sizes, card)[0]


def another(sizes: Sizes, card: Card, refused: Configuration, why: Exception) -> Configuration:
    """Return what to take from now on where a card refused a configuration: another Triton may need more of it.

    Raises:
        Exception: `why` itself, where nothing else is left; the next call tries the last one again.
    """
    left = [choice for choice in _usable(sizes, card) if choice != refused]
    if not left:
        raise why
    _REFUSED.add((sizes, card, refused))
    configuration.cache_clear()
    log.warning("%s for a product of %s: %s, from now on %s", refused, _size_name(sizes), why, left[0])
    return left[0]


_REFUSED: set[tuple[Sizes, Card, Configuration]] = set()


def _usable(sizes: Sizes, card: Card) -> list[Configuration]:
    """Return what was measured, if anything was, and the choices by estimate, without what the card refused."""
    known = _known().get(_card_name(card), {}).get(_size_name(sizes))
    choices = [*([] if known is None else [known]), *by_estimate(sizes, card)]
    return [choice for choice in choices if (sizes, card, choice) not in _REFUSED]


@functools.cache
def _known() -> dict[str, dict[str, Configuration]]:
    known: dict[str, dict[str, Configuration]] = {}
    for path in (SHIPPED, cache_folder() / FILE):
        for card, sizes in _read(path).items():
            made = {name: Configuration(*numbers) for name, numbers in sizes.items()}
            known.setdefault(card, {}).update(made)
    return known


def _read(path: Path) -> dict[str, dict[str, list[int]]]:
    """Return what a file says; nothing where it is absent or damaged: it can be measured again."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(card): {
                str(name): [int(number) for number in numbers] for name, numbers in sizes.items() if len(numbers) == 5
            }
            for card, sizes in read.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _keep(tuner: Tuner) -> None:
    path = cache_folder() / FILE
    read = _read(path)
    for (card, sizes), chosen in tuner.found.items():
        read.setdefault(_card_name(card), {})[_size_name(sizes)] = list(astuple(chosen))
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(read, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
    _known.cache_clear()
    configuration.cache_clear()


def _card_name(card: Card) -> str:
    return f"sm_{card.capability[0]}{card.capability[1]} x {card.multiprocessors}"


def _size_name(sizes: Sizes) -> str:
    return " ".join(str(int(number)) for number in astuple(sizes))


def _device_ms(call: Callable[[], None]) -> float | None:
    from triton.errors import TritonError
    from triton.testing import do_bench

    try:
        return float(do_bench(call, warmup=5, rep=30, return_mode="median"))
    except (TritonError, RuntimeError) as error:
        # Too much shared memory or too many registers; the compiler's passes and the driver raise RuntimeError.
        log.debug("not measured: %s", error)
        return None
