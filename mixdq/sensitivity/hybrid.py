"""Which estimated scores to measure exactly: those that a plan would regret most to have believed.

A program over the budgets prices bits: at the price p a layer takes the width of the least loss + p * cost, and as p
falls from high to low the plans of all budgets come by. Where an estimate is off, the wrong width may be taken; the
expected loss of that (the "unit normal loss integral" of decision theory), as a share of the whole plan's loss and
averaged over budgets, is what measuring is worth. It is greatest for sensitive layers, for low bits, and for widths
whose error bars straddle a decision; nothing for widths that no budget takes.

Not here: how anything is measured. Nothing is random, so the same scores give the same choice.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mixdq.sensitivity.trials import Trial
from mixdq.types.layers import LayerSpec
from mixdq.types.plan import FLOAT_BITS
from mixdq.types.scores import Score, ScoreKey

PRICES = 24
"""How many budgets the worth is averaged over, from the cheapest plan to the dearest."""
UNTRIED = 0.5
"""By how much of itself first order may be wrong in a kind of layer that has not been measured yet."""
ROUNDS = 4
"""In how many rounds trials are chosen: each round knows what those before have measured."""


@dataclass(frozen=True)
class _Option:
    """One width of one layer: what it loses and costs, how sure that is, and the trial that would tell (None: none)."""

    trial: int | None
    loss: float
    sigma: float
    cost: float


def next_trials(
    trials: Sequence[Trial],
    layers: Mapping[str, LayerSpec],
    estimates: Mapping[ScoreKey, Score],
    known: Mapping[ScoreKey, Score],
    count: int,
) -> list[Trial]:
    """Return what to measure exactly now, in the order of `trials`; none when `count` trials have been.

    `estimates` are all scores that were ever estimated, `known` the present ones, of which those measured already are
    exact. What was chosen in earlier rounds is found out again from the estimates, so that an interrupted search goes
    on as it would have.
    """
    if not count:
        return []
    believed = dict(known) | dict(estimates)
    chosen: set[int] = set()
    for number in range(ROUNDS):
        wanted = count * (number + 1) // ROUNDS - len(chosen)
        worth = _worth(trials, layers, believed, estimates)
        candidates = [index for index in range(len(trials)) if index not in chosen and worth[index] > 0]
        picked = sorted(sorted(candidates, key=lambda index: -worth[index])[:wanted])
        missing = [
            trials[index] for index in picked if any(known[key].stderr is not None for key in trials[index].keys)
        ]
        if missing:
            return missing
        chosen |= set(picked)
        believed |= {key: known[key] for index in picked for key in trials[index].keys}
    return []


def _worth(
    trials: Sequence[Trial],
    layers: Mapping[str, LayerSpec],
    believed: Mapping[ScoreKey, Score],
    estimates: Mapping[ScoreKey, Score],
) -> list[float]:
    """Return what measuring each trial is worth, summed over the programs that it is in."""
    wrong = _errors_of_kinds(believed, estimates)
    programs: dict[tuple[str, str], dict[str, list[_Option]]] = {}
    for index, trial in enumerate(trials):
        spec = layers[trial.layer]
        size = spec.weight_numel if trial.role == "weight" else spec.input_numel
        for key in trial.keys:
            loss, sigma = _loss(believed[key])
            if believed[key].stderr is not None:
                sigma = math.hypot(sigma, loss * wrong.get(_kind(key), UNTRIED))
            options = programs.setdefault((trial.role, key[3]), {}).setdefault(trial.layer, [])
            if trial.role == "activation" and not options:
                # Inputs that lose most may be left in floating point, which loses nothing.
                options.append(_Option(None, 0.0, 0.0, size * FLOAT_BITS))
            options.append(_Option(index, loss, sigma, size * trial.num_bits))
    worth = [0.0] * len(trials)
    for program in programs.values():
        for option, value in _worth_in(list(program.values())):
            if option.trial is not None:
                worth[option.trial] += value
    return worth


def _worth_in(layers: Sequence[Sequence[_Option]]) -> Iterator[tuple[_Option, float]]:
    """Yield options and what knowing them is worth, one price after the other."""
    for price in _prices(layers):
        taken = [min(options, key=lambda option: option.loss + price * option.cost) for options in layers]
        total = sum(option.loss for option in taken)
        if total == 0.0:
            continue
        for best, options in zip(taken, layers, strict=True):
            for other in options:
                sigma = math.hypot(best.sigma, other.sigma)
                if other is best or sigma == 0.0:
                    continue
                gap = (other.loss + price * other.cost) - (best.loss + price * best.cost)
                regret = sigma * _normal_loss(gap / sigma) / total
                # Who is surer is told less by a measurement.
                yield best, regret * (best.sigma / sigma) ** 2
                yield other, regret * (other.sigma / sigma) ** 2


def _prices(layers: Sequence[Sequence[_Option]]) -> list[float]:
    """Return prices whose plans cost about equally spaced budgets between the cheapest and the dearest plan."""
    slopes = sorted(
        (
            (low.loss - high.loss) / (high.cost - low.cost)
            for options in layers
            for low, high in itertools.pairwise(sorted(options, key=lambda option: option.cost))
            if low.loss > high.loss
        ),
        reverse=True,
    )
    if not slopes:
        return []
    return [slopes[(len(slopes) - 1) * step // (PRICES - 1)] for step in range(PRICES)]


def _normal_loss(z: float) -> float:
    """Return E[max(0, u - z)] of a standard normal u."""
    density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return density - 0.5 * z * math.erfc(z / math.sqrt(2.0))


def _loss(score: Score) -> tuple[float, float]:
    """Return what a score stands for, noise power or 1 - SSIM, and its standard error."""
    stderr = score.stderr or 0.0
    if score.metric == "sqnr":
        loss = 10.0 ** (-score.value / 10.0)
        return loss, loss * stderr * math.log(10.0) / 10.0
    return 1.0 - score.value, stderr


def _kind(key: ScoreKey) -> tuple[str, str]:
    """Return what layers are alike: the name without its numbers, and the role."""
    return re.sub(r"\d+", "", ".".join(key[0].split(".")[-4:])), key[1]


def _errors_of_kinds(
    believed: Mapping[ScoreKey, Score], estimates: Mapping[ScoreKey, Score]
) -> dict[tuple[str, str], float]:
    """Return kind -> by how much of itself first order was wrong there at worst, as far as measured."""
    out: dict[tuple[str, str], float] = {}
    for key, estimate in estimates.items():
        score = believed[key]
        if score.stderr is None:
            (exact, _), (guess, sigma) = _loss(score), _loss(estimate)
            beyond = max(0.0, abs(exact - guess) - sigma) / guess if guess > 0 else 0.0
            out[_kind(key)] = max(out.get(_kind(key), 0.0), beyond)
    return out
