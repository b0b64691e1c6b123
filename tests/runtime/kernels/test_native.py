import ctypes
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixdq.quant import packing
from mixdq.quant.affine import quantize
from mixdq.quant.qparams import row_qparams
from mixdq.runtime.kernels import native
from mixdq.types.tensors import QParams, QuantSpec


@pytest.fixture
def fresh(monkeypatch, tmp_path) -> Iterator[None]:
    """An empty cache folder and a library not loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached = (native.library, native.trouble, native._loaded)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def compiled() -> ctypes.CDLL:
    reason = native.trouble()
    if reason:
        pytest.skip(reason)
    return native.library()


def test_it_says_what_it_runs_on() -> None:
    way = compiled().mixdq_way().decode()
    assert native.description().startswith(way)
    assert ("one thread" in way) or "OpenMP" not in way


def test_without_a_compiler_it_says_why(fresh, monkeypatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no C compiler found (no-such-compiler)" in str(native.trouble())
    with pytest.raises(native.CompilerError):
        native.library()
    assert native.description() == f"none: {native.trouble()}"


@pytest.mark.parametrize("dtype", list(native.DTYPES), ids=str)
def test_codes_equal_the_reference_on_every_float_of_sixteen_bits(dtype: torch.dtype) -> None:
    library = compiled()
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    x = every.view(half)
    x = x[torch.isfinite(x)].to(dtype)
    for scale, zero_point, num_bits in ((0.013, -77, 8), (3.0e-3, 5, 7), (1.5, 0, 4)):
        spec = QuantSpec(num_bits=num_bits, symmetric=False)
        zero_point = max(spec.code_min, min(spec.code_max, zero_point))
        qparams = QParams(scale=torch.tensor(scale), zero_point=torch.tensor(zero_point, dtype=torch.int32), spec=spec)
        codes = torch.empty(len(x), dtype=torch.uint8)
        bad = library.mixdq_quantize(
            *(x.data_ptr(), native.DTYPES[dtype], 1, 1, 1, len(x), *x[None, None, None].stride(), 0, 0, 1),
            *(qparams.scale.data_ptr(), qparams.zero_point.data_ptr(), 0),
            *(spec.code_min, spec.code_max, codes.data_ptr()),
        )
        assert bad == 0
        assert torch.equal(codes.to(torch.int16) - 128, quantize(x, qparams).to(torch.int16))


EXTREMES = [1.0, -1.0, 0.0, 1e-42, -3.0e38, 3.0e38, 6.0e-8, 65504.0]


@pytest.mark.parametrize("dtype", list(native.DTYPES), ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "cropped channels"])
@pytest.mark.parametrize("shape", [(9, 5, 1, 1), (1, 300, 1, 1), (2, 3, 7, 40), (3, 40, 2, 1), (2, 1, 5, 300)])
def test_scales_of_pictures_equal_the_definition_bit_for_bit(
    dtype: torch.dtype, memory: str, shape: tuple[int, ...]
) -> None:
    library = compiled()
    generator = torch.Generator().manual_seed(sum(shape))
    batch, channels, height, width = shape
    factors = torch.tensor(EXTREMES)[torch.randint(len(EXTREMES), (batch, 1, 1, 1), generator=generator)]
    for num_bits in range(2, 9):
        x = (torch.rand(batch, channels + 2, height, width, generator=generator) - 0.3) * factors
        # Finite in every dtype.
        limit = torch.finfo(dtype).max
        x = x.clamp(-limit, limit).to(dtype)
        x = x[:, :channels].contiguous() if memory == "contiguous" else x.contiguous(memory_format=torch.channels_last)
        x = x[:, :channels] if memory != "channels_last" else x[:, 2:].contiguous(memory_format=torch.channels_last)
        spec = QuantSpec(num_bits=num_bits, symmetric=False)
        scales, zero_points = torch.empty(batch), torch.empty(batch, dtype=torch.int32)
        room = torch.empty(batch * height * 2)
        library.mixdq_own_scales(
            *(x.data_ptr(), native.DTYPES[dtype], batch, channels, height, width, *x.stride()),
            *(spec.code_min, spec.code_max, room.data_ptr(), scales.data_ptr(), zero_points.data_ptr()),
        )
        wanted = row_qparams(x, num_bits, axes=3)
        assert wanted.zero_point is not None
        assert torch.equal(scales, wanted.scale.flatten())
        assert torch.equal(zero_points, wanted.zero_point.flatten())


@pytest.mark.parametrize("num_bits", packing.PACKED_BITS)
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 63, 64, 65, 200])
def test_packing_is_the_portable_layout_both_ways(num_bits: int, columns: int) -> None:
    compiled()
    half = 2 ** (num_bits - 1)
    generator = torch.Generator().manual_seed(columns)
    codes = torch.randint(-half, half, (5, columns), generator=generator).to(torch.int8)
    packed = packing.pack(codes, num_bits)
    assert torch.equal(native.pack(codes, num_bits), packed)
    assert torch.equal(native.unpack(packed, num_bits, columns), codes)


@given(rows=st.integers(0, 5), columns=st.integers(0, 70), seed=st.integers(0, 99))
def test_row_sums_are_exact(rows: int, columns: int, seed: int) -> None:
    compiled()
    codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(native.row_sums(codes).long(), codes.long().sum(1))
