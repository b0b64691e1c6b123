"""E4M3 floats in kernels against `mixdq.quant.e4m3`, bit for bit; interpreted, on a GPU, or compiled for one."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from mixdq.quant import e4m3
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.kernels.gpu.e4m3 import nearest_codes, numbers_of

works = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

DEVICE = available.device_type()
CODES = torch.tensor([code for code in range(-128, 128) if code & 127 != 127], dtype=torch.int8)


@triton.jit
def convert(x, y, count, of_codes: tl.constexpr, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    read = tl.load(x + at, mask=at < count, other=0)
    tl.store(y + at, numbers_of(read) if of_codes else nearest_codes(read), mask=at < count)


def converted(x: Tensor) -> Tensor:
    of_codes = x.dtype == torch.int8
    y = torch.empty(len(x), dtype=torch.float32 if of_codes else torch.int8, device=DEVICE)
    convert[(triton.cdiv(len(x), 1024),)](x.to(DEVICE), y, len(x), of_codes=of_codes, block=1024)
    return y.cpu()


@works
def test_codes_stand_for_the_same_numbers() -> None:
    assert torch.equal(converted(CODES), e4m3.real(CODES))


@works
def test_the_nearest_float_is_found_and_of_two_the_even_one() -> None:
    numbers = e4m3.real(CODES).unique()
    between = (numbers[1:] + numbers[:-1]) / 2
    near = [torch.nextafter(between, torch.full_like(between, end)) for end in (-torch.inf, torch.inf)]
    others = torch.randn(4096) * 2.0 ** torch.randint(-40, 9, (4096,))
    least = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-45, -1e-45])
    x = torch.cat([numbers, between, *near, others.clamp(-448.0, 448.0), least])
    assert torch.equal(converted(x), e4m3.nearest_codes(x))


@pytest.mark.parametrize("capability", [89, 90, 100])
def test_cards_convert_by_an_instruction(compiled: Any, capability: int) -> None:
    asm = compiled(convert, capability, {"of_codes": False, "block": 1024}, {"x": "*fp32", "y": "*i8"}).asm
    assert "cvt.rn.satfinite.e4m3x2.f32" in asm["ptx"]
    asm = compiled(convert, capability, {"of_codes": True, "block": 1024}, {"x": "*i8", "y": "*fp32"}).asm
    assert "cvt.rn.f16x2.e4m3x2" in asm["ptx"]
