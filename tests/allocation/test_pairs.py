import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixdq.allocation import joint
from mixdq.allocation.pairs import discoveries, estimate_terms, find_pairs
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import Budget, LayerBits
from mixdq.types.scores import ErrorModel, Score, SensitivityTable

SAMPLES, OUTPUTS = 4, 400
BUDGET = Budget(
    weight_bits=5.0,
    activation_bits=16.0,
    weight_choices={"content": (4, 8), "quality": (4, 8)},
    activation_choices={"content": (8,), "quality": (8,)},
)


class Case:
    """Six layers whose errors move an output of 400 numbers by known steps; a and b alike, c and d contrary."""

    def __init__(self, seed: int, vectors: int) -> None:
        rng = np.random.default_rng(seed)
        names = "abcdef"
        self.table = LayerTable(
            model="m",
            family="sdxl",
            digest="d",
            layers=tuple(
                LayerSpec(name=n, op="linear", group="quality", weight_shape=(10, 10), input_numel=10, macs=100)
                for n in names
            ),
        )
        self.columns = tuple((n, "weight", bits) for n in names for bits in (4, 8))
        self.steps = {(n, bits): rng.normal(size=OUTPUTS) / OUTPUTS**0.5 / bits for n in names for bits in (4, 8)}
        for bits in (4, 8):
            self.steps["b", bits] += 0.8 * self.steps["a", bits]
            self.steps["d", bits] -= 0.8 * self.steps["c", bits]
            # Alone d loses most, but c makes up for it.
            self.steps["c", bits], self.steps["d", bits] = (1.3 * self.steps[name, bits] for name in "cd")
        signs = rng.choice([-1.0, 1.0], size=(vectors, SAMPLES, OUTPUTS))
        self.products = signs @ np.stack([self.steps[n, bits] for n, _, bits in self.columns]).T
        self.scores = SensitivityTable(
            scores=tuple(
                Score(
                    layer=n,
                    role="weight",
                    num_bits=bits,
                    metric="sqnr",
                    value=float(-10 * np.log10(np.square(self.steps[n, bits]).sum())),
                )
                for n, _, bits in self.columns
            ),
            origin={},
        )

    def find(self, count: int = 100, model: ErrorModel | None = None) -> joint.LayerPairs:
        program = joint.build_program(self.table, self.scores, BUDGET, error_model=model)
        return find_pairs(program, {"sqnr": self.columns}, {"sqnr": self.products}, count, error_model=model)

    def loss(self, widths: dict[str, int]) -> float:
        return float(np.square(sum(self.steps[name, bits] for name, bits in widths.items())).sum())


def at(bits: int) -> LayerBits:
    return LayerBits(weight=bits, activation=16)


def test_terms_of_layers_that_interact_are_found_with_their_sign_and_size() -> None:
    case = Case(0, vectors=32)
    found = case.find()
    assert {("a", "b"), ("c", "d")} <= found.keys()
    for a, b in (("a", "b"), ("c", "d")):
        true = 2 * case.steps[a, 4] @ case.steps[b, 4]
        # The products of two nearly normal variables: a variance of l_a l_b (1 + rho^2) over 128 of them.
        sigma = 2 * (2 * np.square(case.steps[a, 4]).sum() * np.square(case.steps[b, 4]).sum() / 128) ** 0.5
        assert found[a, b][at(4), at(4)] == pytest.approx(true, abs=4 * sigma)
    assert found["a", "b"][at(4), at(4)] > 0 > found["c", "d"][at(4), at(4)]
    strongest = case.find(count=1)
    assert list(strongest) in ([("a", "b")], [("c", "d")])
    assert case.find(count=0) == {}


def test_of_layers_that_do_not_interact_nearly_nothing_is_found() -> None:
    wrong = right = 0
    for seed in range(20):
        found = Case(seed, vectors=16).find()
        right += len(found.keys() & {("a", "b"), ("c", "d")})
        wrong += len(found.keys() - {("a", "b"), ("c", "d")})
    assert right == 40
    # Five in a hundred by chance, and what steps of 400 numbers have in common by chance is real.
    assert wrong <= 20


def test_the_plan_that_knows_of_pairs_loses_less() -> None:
    case = Case(0, vectors=32)
    plain = joint.allocate(case.table, case.scores, BUDGET)
    paired = joint.allocate(case.table, case.scores, BUDGET, pairs=case.find())
    losses = [case.loss({n: bits.weight for n, bits in plan.layers.items()}) for plan in (plain, paired)]
    every = [dict(zip("abcdef", widths, strict=True)) for widths in itertools.product((4, 8), repeat=6)]
    best = min(case.loss(one) for one in every if sum(one.values()) <= 30)
    assert best <= losses[1] < losses[0]


def test_a_group_whose_layers_keep_their_bits_has_no_pairs_and_hinders_no_other() -> None:
    case = Case(0, vectors=32)
    products = {"sqnr": case.products, "ssim": case.products}
    program = joint.build_program(case.table, case.scores, BUDGET)
    # None of the layers that "ssim" tells of is to be given bits.
    columns = {"ssim": tuple(("g", role, bits) for _, role, bits in case.columns), "sqnr": case.columns}
    assert find_pairs(program, columns, products, 100) == case.find()
    keep = replace(BUDGET, weight_bits=16.0, keep=tuple("abcdef"))
    program = joint.build_program(case.table, case.scores, keep)
    assert find_pairs(program, columns, products, 100) == {}


def test_an_error_model_weighs_terms_as_it_weighs_losses() -> None:
    case = Case(0, vectors=32)
    weights = {"weight": 9.0, "activation": 1.0}
    model = ErrorModel(weights={"content": weights, "quality": weights}, plans=8, correlation=1.0)
    plain, weighed = case.find(), case.find(model=model)
    assert plain.keys() == weighed.keys()
    assert weighed["a", "b"][at(4), at(8)] == pytest.approx(9 * plain["a", "b"][at(4), at(8)])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 5, 40]))
def test_terms_are_twice_the_mean_product_and_chances_are_not_too_small(seed, columns) -> None:
    rng = np.random.default_rng(seed)
    # Heavy tails, as of pictures some of which feel an error much more.
    products = rng.standard_t(3, size=(64, columns))
    terms, chances = estimate_terms(products)
    assert terms == pytest.approx(2 * np.einsum("ni,nj->ij", products, products) / 64)
    apart = chances[np.triu_indices(columns, 1)]
    assert ((apart >= 0) & (apart <= 1)).all()
    assert (apart < 0.001).sum() <= max(2, 0.01 * len(apart))


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.01, 0.5))
def test_discoveries_are_those_of_benjamini_and_hochberg(chances, rate) -> None:
    found = discoveries(np.array(chances), rate)
    ranks = [k for k in range(1, len(chances) + 1) if sorted(chances)[k - 1] <= rate * k / len(chances)]
    limit = sorted(chances)[max(ranks) - 1] if ranks else -1.0
    assert list(found) == [chance <= limit for chance in chances]
