import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.ao.quantization.observer import HistogramObserver

from mixdq.quant.affine import fake_quantize
from mixdq.quant.qparams import activation_qparams
from mixdq.quant.ranges.minmax import MinMax
from mixdq.quant.ranges.mse import MeanSquaredError
from mixdq.types.tensors import ActivationRange


def squared_error(x: torch.Tensor, rng: ActivationRange, num_bits: int) -> float:
    return float((fake_quantize(x, activation_qparams(rng, num_bits)) - x).double().square().mean())


def estimate(x: torch.Tensor, num_bits: int) -> ActivationRange:
    estimator = MeanSquaredError(num_bits=num_bits)
    estimator.update(x)
    return estimator.result()


def widest(x: torch.Tensor) -> ActivationRange:
    return ActivationRange(min=x.min().item(), max=x.max().item(), batches=1)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), freedom=st.sampled_from([1.5, 2.0, 3.0]), num_bits=st.sampled_from([4, 6, 8]))
def test_error_is_at_most_that_of_min_max_on_heavy_tails(seed: int, freedom: float, num_bits: int) -> None:
    x = torch.from_numpy(np.random.default_rng(seed).standard_t(freedom, size=5000).astype(np.float32))
    # Exact on the histogram; a bin is at most 1/2048 of the largest magnitude wide, a step of 8 bits at least 1/255.
    assert squared_error(x, estimate(x, num_bits), num_bits) <= squared_error(x, widest(x), num_bits) * (1 + 1e-2)


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("name", ["normal", "laplace", "t3", "silu"])
def test_error_is_near_the_best_of_a_brute_force_search(name: str, num_bits: int) -> None:
    generator = np.random.default_rng(7)
    samples = {
        "normal": generator.normal(size=20_000),
        "laplace": generator.laplace(size=20_000),
        "t3": generator.standard_t(3, size=20_000),
        "silu": (lambda v: v / (1 + np.exp(-v)))(3 * generator.normal(size=20_000)),
    }
    x = torch.from_numpy(samples[name].astype(np.float32))
    outer = widest(x)
    shares = np.linspace(0.1, 1.0, 25)
    best = min(
        squared_error(x, ActivationRange(min=outer.min * a, max=outer.max * b, batches=1), num_bits)
        for a in shares
        for b in shares
    )
    # The grid of bounds has steps of 9 %, which moves the error by a few percent around its flat minimum.
    assert squared_error(x, estimate(x, num_bits), num_bits) <= 1.10 * best


def test_not_worse_than_the_observer_of_torch() -> None:
    x = torch.from_numpy(np.random.default_rng(3).standard_t(2.5, size=50_000).astype(np.float32))
    observer = HistogramObserver(dtype=torch.qint8, qscheme=torch.per_tensor_affine)
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    theirs = torch.fake_quantize_per_tensor_affine(x, scale.float(), zero_point.to(torch.int32), -128, 127)
    ours = squared_error(x, estimate(x, 8), 8)
    assert ours <= 1.10 * float((theirs - x).double().square().mean())


def test_few_bits_clip_more_than_many() -> None:
    x = torch.from_numpy(np.random.default_rng(0).laplace(size=20_000).astype(np.float32))
    assert estimate(x, 4).max < estimate(x, 8).max <= widest(x).max


def test_a_uniform_input_is_not_clipped() -> None:
    x = torch.linspace(-1.0, 1.0, 10_001)
    found = estimate(x, 8)
    assert (found.min, found.max) == (-1.0, 1.0)


def test_two_values_are_kept_whole() -> None:
    x = torch.tensor([0.0, 3.0]).repeat(50)
    assert (estimate(x, 8).min, estimate(x, 8).max) == (0.0, 3.0)


def test_batches_add_up() -> None:
    x = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    together, apart = MeanSquaredError(), MeanSquaredError()
    together.update(x)
    for row in x:
        apart.update(row)
    a, b = together.result(), apart.result()
    assert (a.min, a.max) == (b.min, b.max)
    assert (together.result().batches, apart.result().batches) == (1, 6)
    reference = MinMax()
    reference.update(x)
    assert reference.result().min <= a.min


def test_a_width_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="num_bits"):
        MeanSquaredError(num_bits=16)
