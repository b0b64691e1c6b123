"""Configurations that were measured: shipped for some cards (`tuned.json`), found on this machine for others.

    with tuning():
        pipe(...)

measures the best-looking choices of every product that runs inside, once for each size, and keeps what it found in the
user's cache folder at once, where `configuration` finds it from then on; nothing there is measured again. Results do
not change: sums of codes are exact in any tiles; sums of floats (weight-only layers) come out in another order.

What was measured also serves its neighbours: products that differ in their rows alone, by a factor of `NEAR` at most,
and other cards of the same compute capability, however many multiprocessors these have. The nearest rows come first,
then the nearest number of multiprocessors. Only what would be measured there too is taken over: the estimate knows when
a card of more multiprocessors would stand idle, or a tile be mostly empty.
"""

import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import astuple, fields, replace
from pathlib import Path

from mixdq.runtime.kernels.compiler import cache_folder
from mixdq.runtime.kernels.gpu.configurations import Card, Configuration, Sizes, by_estimate

SHIPPED = Path(__file__).with_name("tuned.json")
FILE = "gpu-tuned.json"
MEASURED = 12
"""Choices that are measured of a size, the best by estimate."""
NEAR = 4
"""A picture of twice the height and width has so many times the rows."""

log = logging.getLogger(__name__)

Run = Callable[[Configuration], None]
Timer = Callable[[Callable[[], None]], float | None]
"""Returns the milliseconds of a call; None where the card cannot run it."""
Known = Mapping[tuple[Card, Sizes], Configuration]


class Tuner:
    """Measures each size of products once, but none that is `known` from before, unless the card refused it since.

    `found` has what to take for each; `measured` are those of it that were measured here.
    """

    def __init__(self, timer: Timer, known: Known) -> None:
        self._timer, self._known = timer, known
        self._asked: set[tuple[Card, Sizes]] = set()
        self.found = dict(known)
        self.measured: dict[tuple[Card, Sizes], Configuration] = {}

    def best(self, sizes: Sizes, card: Card, run: Run) -> Configuration:
        """Return the configuration in which `run` takes least time; the first by estimate where none runs."""
        key, before = (card, sizes), self._known.get((card, sizes))
        if key not in self._asked and (before is None or (sizes, card, before) in _REFUSED):
            self._asked.add(key)
            choices = by_estimate(sizes, card)[:MEASURED]
            times = {choice: self._timer(functools.partial(run, choice)) for choice in choices}
            ran = {choice: time for choice, time in times.items() if time is not None}
            self.found[key] = min(ran, key=lambda choice: ran[choice]) if ran else choices[0]
            if ran:
                self.measured[key] = self.found[key]
                _keep(self.measured)
        return self.found[key]


TUNER: ContextVar[Tuner | None] = ContextVar("TUNER", default=None)
"""Who is asked for configurations, where `tuning` is under way."""


@contextmanager
def tuning(timer: Timer | None = None) -> Iterator[Tuner]:
    """Measure what runs inside, and keep it; `timer` is the device's own by default."""
    tuner = Tuner(timer or _device_ms, _read(cache_folder() / FILE))
    token = TUNER.set(tuner)
    try:
        yield tuner
    finally:
        TUNER.reset(token)


@functools.lru_cache(maxsize=4096)
def configuration(sizes: Sizes, card: Card) -> Configuration:
    """Return what was measured on such a card for such a product, or nearest to that; else the first by estimate."""
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
    estimates = by_estimate(sizes, card)
    exact = _known().get((card, sizes))
    measured = _nearest(sizes, card, estimates[:MEASURED]) if exact is None else [exact]
    return [choice for choice in (*measured, *estimates) if (sizes, card, choice) not in _REFUSED]


def _nearest(sizes: Sizes, card: Card, among: Sequence[Configuration]) -> list[Configuration]:
    """Return what was measured of a product's neighbours, the nearest first."""
    near = [
        (_apart(other.rows, sizes.rows), _apart(theirs.multiprocessors, card.multiprocessors), other.rows, choice)
        for (theirs, other), choice in _known().items()
        if theirs.capability == card.capability and replace(other, rows=sizes.rows) == sizes and choice in among
    ]
    # Of equals the one of fewer rows: its tiles do not outgrow the product.
    return [choice for apart, *_, choice in sorted(near, key=lambda one: one[:3]) if apart <= _apart(NEAR, 1)]


def _apart(one: int, other: int) -> float:
    return abs(math.log2(one / other))


@functools.cache
def _known() -> Known:
    return {**_read(SHIPPED), **_read(cache_folder() / FILE)}


def _read(path: Path) -> Known:
    """Return what a file says; nothing where it is absent or damaged: it can be measured again."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return {
            (_card(card), _sizes(name)): Configuration(*_positive(numbers))
            for card, sizes in read.items()
            for name, numbers in sizes.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _keep(measured: Known) -> None:
    path = cache_folder() / FILE
    written: dict[str, dict[str, list[int]]] = {}
    for (card, sizes), chosen in {**_read(path), **measured}.items():
        written.setdefault(_card_name(card), {})[_size_name(sizes)] = list(astuple(chosen))
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
    _known.cache_clear()
    configuration.cache_clear()


def _card_name(card: Card) -> str:
    return f"sm_{card.capability[0]}{card.capability[1]} x {card.multiprocessors}"


def _card(name: str) -> Card:
    chip, multiprocessors = name.removeprefix("sm_").split(" x ")
    (count,) = _positive([multiprocessors])
    return Card(capability=(int(chip[:-1]), int(chip[-1])), multiprocessors=count)


def _size_name(sizes: Sizes) -> str:
    return " ".join(str(int(number)) for number in astuple(sizes))


def _sizes(name: str) -> Sizes:
    *numbers, of_codes = name.split()
    names = [field.name for field in fields(Sizes)][:-1]
    return Sizes(**dict(zip(names, _positive(numbers), strict=True)), of_codes=of_codes == "1")


def _positive(numbers: Sequence[str | int]) -> list[int]:
    made = [int(number) for number in numbers]
    if min(made, default=0) < 1:
        raise ValueError(f"{made}: expected numbers of 1 or more")
    return made


def _device_ms(call: Callable[[], None]) -> float | None:
    from triton.errors import TritonError
    from triton.testing import do_bench

    try:
        return float(do_bench(call, warmup=5, rep=30, return_mode="median"))
    except (TritonError, RuntimeError) as error:
        # Too much shared memory or too many registers; the compiler's passes and the driver raise RuntimeError.
        log.debug("not measured: %s", error)
        return None
