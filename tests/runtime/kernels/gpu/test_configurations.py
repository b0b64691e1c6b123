from dataclasses import replace

import pytest

from mixdq.runtime.kernels.gpu.configurations import GENERATIONS, Card, Sizes, by_estimate, choices

H100 = Card(capability=(9, 0), multiprocessors=132)
LARGE = Sizes(
    rows=4096, columns=5120, groups=1, steps=5, depth=640, tile=128, weight_bits=8, input_bytes=1, of_codes=True
)


def test_large_products_run_in_large_tiles_and_whole_sums() -> None:
    chosen = by_estimate(LARGE, H100)[0]
    assert chosen.rows * chosen.columns >= 128 * 128
    assert chosen.split == 1


@pytest.mark.parametrize("rows", [1, 2, 8, 77, 154])
def test_few_rows_are_not_computed_as_if_they_were_many(rows: int) -> None:
    chosen = by_estimate(replace(LARGE, rows=rows, columns=1280, depth=2048, steps=16), H100)[0]
    assert chosen.rows < rows + 64


def test_deep_sums_of_few_tiles_are_shared() -> None:
    assert by_estimate(replace(LARGE, rows=16, columns=320, depth=23040, steps=180), H100)[0].split > 1


def test_on_hopper_two_tiles_of_128_fit_a_multiprocessor_and_more_stages_may_be_tuned() -> None:
    stages = [each.stages for each in choices(LARGE, H100) if (each.rows, each.columns, each.split) == (128, 128, 1)]
    assert stages == [3, 4]
    assert 2 * (stages[0] * 2 * 128 * 128 + 1024) <= H100.generation.shared_kib * 1024


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
def test_no_part_of_a_sum_is_empty(steps: int) -> None:
    sizes = replace(LARGE, steps=steps, depth=steps * 128)
    assert all(choice.split <= steps for choice in choices(sizes, H100))


def test_a_card_has_the_rates_of_its_generation_or_the_last_one_before() -> None:
    for capability, rates in GENERATIONS.items():
        assert Card(capability=capability, multiprocessors=1).generation is rates
    assert Card(capability=(8, 7), multiprocessors=1).generation is GENERATIONS[8, 6]
    assert Card(capability=(99, 0), multiprocessors=1).generation is GENERATIONS[max(GENERATIONS)]
