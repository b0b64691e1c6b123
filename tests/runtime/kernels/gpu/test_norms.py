"""A group norm's factors against float64; interpreted, or on a GPU."""

import re

import pytest
import torch

pytest.importorskip("triton")

from mixdq.runtime.kernels.gpu import available, norms
from mixdq.runtime.kernels.gpu.norms import affine_of

works = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

DEVICE = "cpu" if available.interpreted() else "cuda"
EPS = 1e-5


LAST = torch.channels_last


@works
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "groups", "offset", "order"),
    [
        ((2, 6, 5, 7), 3, 0.0, torch.contiguous_format),
        ((1, 5, 1, 1), 1, 3.0, torch.contiguous_format),
        ((2, 4, 101, 100), 2, 100.0, torch.contiguous_format),
        ((2, 24, 5, 7), 8, 1.0, LAST),
        ((2, 40, 9, 7), 1, 1.0, LAST),
        ((2, 60, 3, 5), 3, 1.0, LAST),
        ((2, 40, 37, 41), 4, 100.0, LAST),
        ((1, 120, 17, 19), 2, 10.0, LAST),
        ((1, 80, 27, 32), 1, 10.0, LAST),
    ],
    ids=[
        *("whole", "one pixel", "chunks"),
        *("8 groups", "1 group", "groups apart", "4 groups in chunks", "2 groups in chunks", "1 group in chunks"),
    ],
)
def test_factors_are_those_of_float64(shape, groups: int, offset: float, order, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) + offset).to(dtype).to(DEVICE).contiguous(memory_format=order)
    # Groups of magnitudes of their own.
    x *= 2.0 ** torch.arange(groups, device=DEVICE).repeat_interleave(shape[1] // groups)[:, None, None]
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
@pytest.mark.parametrize("order", [torch.contiguous_format, LAST], ids=["channels first", "channels last"])
def test_what_lies_around_changes_no_bit(order: torch.memory_format) -> None:
    # Where it lies as many bytes are read at once as elsewhere.
    x = torch.randn(2, 32, 50, 48, device=DEVICE).contiguous(memory_format=order)
    weight, bias = torch.randn(16, device=DEVICE), torch.randn(16, device=DEVICE)
    inner = x[:, 16:, 2:, 16:]
    found = affine_of(inner, 8, weight, bias, EPS)
    wanted = affine_of(inner.contiguous(memory_format=order), 8, weight, bias, EPS)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@works
@pytest.mark.parametrize("order", [torch.contiguous_format, LAST], ids=["channels first", "channels last"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_spoils_its_group_alone(value: float, order: torch.memory_format) -> None:
    x = torch.randn(2, 8, 3, 3, device=DEVICE).contiguous(memory_format=order)
    x[1, 2, 0, 1] = value
    weight, bias = torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE)
    for each in affine_of(x, 4, weight, bias, EPS):
        assert (~each.isfinite()).flatten().nonzero().flatten().tolist() == [10, 11]


# Own weights of 4 bytes, so that a load of 2 would be of x.
POINTERS = {"x": "*fp16", "epsilon": "fp32"}
POINTERS |= dict.fromkeys(("own_weight", "own_bias", "partial", "weight", "bias"), "*fp32")


@pytest.mark.parametrize("capability", [80, 89, 90], ids=["Ampere", "Ada", "Hopper"])
@pytest.mark.parametrize(
    ("channels", "in_block", "pixels"), [(10, 4, 128), (60, 2, 256), (80, 1, 256)], ids=["chunk", "two", "one"]
)
def test_channels_side_by_side_are_read_16_bytes_at_once_and_held(
    compiled, stack_and_registers, capability: int, channels: int, in_block: int, pixels: int
) -> None:
    """The largest blocks, of groups as SDXL has them."""
    whole = pixels > 128
    block_channels = 128 if whole else 64
    numbers = block_channels * pixels
    assert numbers == (norms.WHOLE if whole else norms.CHUNK)
    constants = {"channels": channels, "in_block": in_block, "whole": whole}
    constants |= {"block_channels": block_channels, "block_pixels": pixels}
    warps = numbers // (32 * norms.THREAD_NUMBERS)
    kernel = compiled(norms.find_moments, capability, constants, POINTERS, ones=("x_channel",), warps=warps)
    reads = re.findall(r"ld\.global\.(\S+)", kernel.asm["ptx"])
    assert reads.count("v4.b32") == norms.THREAD_NUMBERS // 8
    assert not {read for read in reads if "16" in read}
    stack, registers = stack_and_registers(kernel)
    assert stack == 0
    assert registers * warps * 32 <= 65536
    assert ("sqrt.rn.f32" in kernel.asm["ptx"]) == whole


def test_the_second_kernel_compiles(compiled) -> None:
    constants = {"block_chunks": norms.LEAST_CHUNKS, "block_channels": 32}
    assert "sqrt.rn.f32" in compiled(norms.join_moments, 90, constants, POINTERS, warps=1).asm["ptx"]
