import ctypes
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mixdq.quant import packing
from mixdq.quant.affine import quantize
from mixdq.runtime.kernels import native
from mixdq.types.tensors import QParams, QuantSpec


@pytest.fixture
def fresh(monkeypatch, tmp_path) -> Iterator[Path]:
    """An empty cache folder and a library not loaded yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    native.trouble.cache_clear()
    yield tmp_path / "mixdq"
    native.library.cache_clear()
    native.trouble.cache_clear()


def compiled() -> ctypes.CDLL:
    reason = native.trouble()
    if reason:
        pytest.skip(reason)
    return native.library()


def test_it_is_compiled_once_into_a_folder_of_the_user_alone(fresh) -> None:
    compiled()
    (made,) = fresh.iterdir()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    before = made.stat().st_mtime_ns
    native.library.cache_clear()
    compiled()
    assert [path.stat().st_mtime_ns for path in fresh.iterdir()] == [before]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are a POSIX matter")
def test_a_folder_that_others_can_write_to_is_not_used(fresh) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    assert native._cache() != fresh
    fresh.chmod(0o700)
    assert native._cache() == fresh


def test_without_a_compiler_the_reason_says_what_to_install(fresh, monkeypatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no C compiler found (no-such-compiler)" in str(native.trouble())
    assert "apt-get install gcc" in str(native.trouble())
    with pytest.raises(native.CompilerError):
        native.library()
    assert native.description() == f"none: {native.trouble()}"


def test_a_compiler_that_fails_is_named_with_its_first_error(fresh, monkeypatch, tmp_path) -> None:
    failing = tmp_path / "failing"
    failing.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('products.c:1: error: out of letters')\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CC", str(failing))
    assert "error: out of letters" in str(native.trouble())
    assert not list(fresh.glob("*.so"))


def test_a_damaged_library_is_made_again(fresh, monkeypatch, tmp_path) -> None:
    compiled()
    (made,) = fresh.iterdir()
    # Elsewhere, for a file that is loaded already is not looked at again.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    damaged = tmp_path / "other" / "mixdq" / made.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not a library")
    native.library.cache_clear()
    assert native.library().mixdq_way()
    assert len(damaged.read_bytes()) > 1000


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
