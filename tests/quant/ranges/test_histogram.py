import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixdq.quant.ranges import histogram
from mixdq.quant.ranges.histogram import NUM_BINS, Histogram

# Down to 2^-30, so that no share of a bin underflows beside 2^100.
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda v: v == 0.0 or abs(v) > 2.0**-30)
BATCHES = st.lists(hnp.arrays(np.float32, st.integers(1, 20), elements=FLOATS), min_size=1, max_size=4)


@settings(deadline=None, max_examples=60)
@given(batches=BATCHES)
def test_counts_are_those_of_numpy_on_the_final_edges(batches: list[np.ndarray]) -> None:
    seen = Histogram()
    for batch in batches:
        seen.update(torch.from_numpy(batch))
    everything = np.concatenate(batches).astype(np.float64)
    wanted = np.bincount(np.searchsorted(seen.edges().numpy(), everything, side="right") - 1, minlength=NUM_BINS)
    np.testing.assert_array_equal(seen.counts.numpy(), wanted)
    assert (seen.min, seen.max, seen.batches) == (everything.min(), everything.max(), len(batches))


@settings(deadline=None, max_examples=40)
@given(batches=BATCHES)
def test_the_order_of_batches_does_not_matter(batches: list[np.ndarray]) -> None:
    forth, back = Histogram(), Histogram()
    for batch in batches:
        forth.update(torch.from_numpy(batch))
    for batch in reversed(batches):
        back.update(torch.from_numpy(batch))
    assert forth.width == back.width
    assert torch.equal(forth.counts, back.counts)


def test_bins_are_fine_against_the_largest_value() -> None:
    seen = Histogram()
    seen.update(torch.tensor([-3.0, 0.1]))
    assert seen.width <= 3.0 / 2048
    assert seen.edges()[NUM_BINS // 2] == 0.0


def test_long_inputs_are_counted_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole, chunked = Histogram(), Histogram()
    whole.update(x)
    monkeypatch.setattr(histogram, "_CHUNK", 64)
    chunked.update(x)
    assert torch.equal(whole.counts, chunked.counts)


@pytest.mark.parametrize("largest", [torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny])
def test_the_ends_of_float32_are_counted(largest: float) -> None:
    seen = Histogram()
    seen.update(torch.tensor([largest, -largest, 0.0]))
    assert int(seen.counts.sum()) == 3
