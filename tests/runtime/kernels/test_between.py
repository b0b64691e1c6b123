import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mixdq.runtime.kernels import native
from mixdq.runtime.kernels.between import attention, geglu

pytestmark = pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def exact(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention in float64 as its definition has it."""
    q, k, v = (heads_of(tensor.to(torch.float64), heads) for tensor in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def tokens(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", list(native.DTYPES), ids=str)
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "heads", "dim"),
    [
        (1, 1, 1, 1, 1),
        (2, 37, 77, 3, 40),
        (1, 14, 512, 2, 64),
        (1, 15, 513, 1, 64),
        (3, 5, 1100, 2, 80),
        (1, 29, 31, 1, 9),
    ],
)
def test_attention_is_its_definition_to_the_last_places(batch, queries, keys, heads, dim, dtype) -> None:
    q = 3.0 * tokens(batch, queries, heads * dim, dtype=dtype, seed=1)
    k, v = (tokens(batch, keys, heads * dim, dtype=dtype, seed=seed) for seed in (2, 3))
    expected = exact(q, k, v, heads)
    # Errors of float32 within, where scores are some tens; the output's own rounding comes on top.
    tolerance = 1e-5 + torch.finfo(dtype).eps / 2
    assert bool(
        (
            (attention(q, k, v, heads).to(torch.float64) - expected).abs() <= tolerance * expected.abs().clamp(min=1.0)
        ).all()
    )


def test_attention_of_equal_keys_is_the_mean_and_of_one_key_its_value() -> None:
    q, v = tokens(1, 20, 64, dtype=torch.float32, seed=1), tokens(1, 700, 64, dtype=torch.float32, seed=2)
    same = tokens(1, 1, 64, dtype=torch.float32, seed=3)
    torch.testing.assert_close(attention(q, same.expand(1, 700, 64), v, 4), v.mean(1, keepdim=True).expand(1, 20, 64))
    assert torch.equal(attention(q, same, v[:, :1], 4), v[:, :1].expand(1, 20, 64))


def test_attention_keeps_to_scores_that_overflow_no_exponential() -> None:
    q, k = torch.full((1, 3, 8), 200.0), torch.full((1, 600, 8), 200.0)
    k[:, 550] = 201.0
    v = torch.arange(600.0).view(1, 600, 1).expand(1, 600, 8)
    assert torch.equal(attention(q, k, v, 1), torch.full((1, 3, 8), 550.0))
    assert torch.equal(attention(q, k.flip(1), v, 1), torch.full((1, 3, 8), 49.0))


def test_attention_of_what_is_no_number_is_no_number() -> None:
    q, k, v = (tokens(1, 40, 32, dtype=torch.float32, seed=seed) for seed in (1, 2, 3))
    k[0, 7, 3] = torch.nan
    y = attention(q, k, v, 2)
    assert bool(torch.isnan(y[..., :16]).all())
    assert bool(torch.isfinite(y[..., 16:]).all())


def test_attention_takes_any_strides_and_edges() -> None:
    joined = tokens(2, 30, 3 * 48, dtype=torch.bfloat16, seed=1)
    q, k, v = joined.split(48, dim=-1)
    expected = attention(q.contiguous(), k.contiguous(), v.contiguous(), 3)
    assert torch.equal(attention(q, k, v, 3), expected)
    assert torch.equal(attention(q.mT.contiguous().mT, k, v.mT.contiguous().mT, 3), expected)
    assert attention(q[:, :0], k, v, 3).shape == (2, 0, 48)
    assert torch.equal(attention(q, k[:, :0], v[:, :0], 3), torch.zeros_like(expected))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_attention_is_the_same_on_any_number_of_threads(threads: int) -> None:
    q, k, v = (tokens(2, 100, 128, dtype=torch.float32, seed=seed) for seed in (1, 2, 3))
    expected, before = attention(q, k, v, 2), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(attention(q, k, v, 2), expected)
    finally:
        torch.set_num_threads(before)


def test_attention_says_what_does_not_fit() -> None:
    q, k = torch.zeros(1, 4, 6), torch.zeros(1, 5, 6)
    with pytest.raises(ValueError, match=r"found q \[1, 4, 6\], k \[1, 5, 6\], v \[1, 4, 6\]"):
        attention(q, k, q, 2)
    with pytest.raises(ValueError, match="a width of 6 cannot be shared by 4 heads"):
        attention(q, k, k, 4)
    with pytest.raises(ValueError, match="float64"):
        attention(q.double(), k.double(), k.double(), 2)


@pytest.mark.parametrize("dtype", list(native.DTYPES), ids=str)
@pytest.mark.parametrize("width", [1, 15, 16, 511, 512, 513, 1300])
def test_geglu_is_its_definition(dtype: torch.dtype, width: int) -> None:
    x = 4.0 * tokens(3, 5, 2 * width, dtype=dtype, seed=width)
    value, gate = x.to(torch.float64).chunk(2, dim=-1)
    expected = value * functional.gelu(gate)
    found = geglu(x)
    assert found.shape == (3, 5, width)
    assert found.dtype == dtype
    bound = (value * gate).abs() * 5e-7 + expected.abs() * torch.finfo(dtype).eps / 2 + torch.finfo(dtype).tiny
    assert bool(((found.to(torch.float64) - expected).abs() <= bound).all())


def test_geglu_far_out_and_of_what_is_no_number() -> None:
    gate = torch.tensor([-1e30, -20.0, 0.0, 20.0, 1e30, torch.nan])
    found = geglu(torch.cat([torch.ones(6), gate]))
    assert torch.equal(found[:5], torch.tensor([0.0, 0.0, 0.0, 20.0, 1e30]))
    assert bool(torch.isnan(found[5]))
    with pytest.raises(ValueError, match=r"found torch\.float32 \[3\]"):
        geglu(torch.zeros(3))


def test_compilers_see_whole_calls() -> None:
    q, k, v = (tokens(2, 10, 32, dtype=torch.bfloat16, seed=seed) for seed in (1, 2, 3))
    for operator, arguments in (("cpu_attention", (q, k, v, 2)), ("cpu_geglu", (q,))):
        overload = getattr(torch.ops.mixdq, operator).default
        torch.library.opcheck(overload, arguments, test_utils=("test_schema", "test_faketensor"))
