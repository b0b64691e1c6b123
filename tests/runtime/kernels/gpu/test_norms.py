"""A group norm's factors against float64; interpreted, or on a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from mixdq.runtime.kernels.gpu import available, norms
from mixdq.runtime.kernels.gpu.norms import affine_of

works = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

DEVICE = "cpu" if available.interpreted() else "cuda"
EPS = 1e-5


@works
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "groups", "offset"),
    [((2, 6, 5, 7), 3, 0.0), ((1, 5, 1, 1), 1, 3.0), ((2, 4, 101, 100), 2, 100.0)],
    ids=["one chunk", "one pixel", "chunks"],
)
def test_factors_are_those_of_float64(shape, groups: int, offset: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) + offset).to(dtype).to(DEVICE)
    weight, bias = (torch.randn(shape[1], generator=generator).to(dtype).to(DEVICE) for _ in range(2))
    found = affine_of(x, groups, weight, bias, EPS)
    exact = x.double().unflatten(1, (groups, -1)).flatten(2)
    mean, variance = exact.mean(2, keepdim=True), exact.var(2, keepdim=True, correction=0)
    # Less than 2^17 numbers, added lane by lane and then in pairs: the mean is off by no more roundings of the mean
    # magnitude than this, the variance by as many of itself and by the square of that.
    many = 32 * 2.0**-24
    off = many * exact.abs().mean(2, keepdim=True)
    share = many + off**2 / (variance + EPS)
    per_channel = (each.expand(-1, -1, shape[1] // groups).flatten(1) for each in (mean, variance, off, share))
    mean, variance, off, share = per_channel
    factor = weight.double() / (variance + EPS).sqrt()
    assert bool(((found[0] - factor).abs() <= share * factor.abs()).all())
    bound = (share + many) * (mean * factor).abs() + off * factor.abs() + many * bias.double().abs()
    assert bool(((found[1] - (bias.double() - mean * factor)).abs() <= bound).all())


@works
def test_the_order_in_memory_and_what_lies_around_change_no_bit() -> None:
    x = torch.randn(2, 4, 102, 101, device=DEVICE)
    weight, bias = torch.randn(4, device=DEVICE), torch.randn(4, device=DEVICE)
    wanted = affine_of(x[:, :, 1:, 1:].contiguous(), 2, weight, bias, EPS)
    for each in (x, x.contiguous(memory_format=torch.channels_last)):
        found = affine_of(each[:, :, 1:, 1:], 2, weight, bias, EPS)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@works
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_spoils_its_group_alone(value: float) -> None:
    x = torch.randn(2, 4, 3, 3, device=DEVICE)
    x[1, 2, 0, 1] = value
    weight, bias = torch.ones(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    for each in affine_of(x, 2, weight, bias, EPS):
        assert (~each.isfinite()).flatten().tolist() == [False] * 6 + [True] * 2


@pytest.mark.parametrize("whole", [True, False])
def test_moments_compile(compiled, whole: bool) -> None:
    tensors = ("partial", "weight", "bias")
    pointers = {"x": "*fp16", "own_weight": "*fp16", "own_bias": "*fp16", "epsilon": "fp32"}
    pointers |= dict.fromkeys(tensors, "*fp32")
    constants = {"whole": whole, "block_rows": 128, "block_channels": 32}
    last = compiled(norms.find_moments, 90, constants, pointers, ones=("x_channel",))
    if not whole:
        constants = {"block_chunks": norms.CHUNKS, "block_channels": 32}
        last = compiled(norms.join_moments, 90, constants, pointers, warps=1)
    assert "sqrt.rn.f32" in last.asm["ptx"]
