"""Every way to compute a tile that can be compiled and run here, other processors' in an emulator."""

import io
import platform
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mixdq.quant import packing
from mixdq.runtime.kernels import compiler, native, processor

PANEL = 32
X86 = platform.machine() in ("x86_64", "AMD64")
ARM = platform.machine() in ("aarch64", "arm64")


@dataclass(frozen=True)
class Way:
    """A name, the compiler's options that choose it, and what the processor must have (an emulator: which one)."""

    name: str
    options: str
    needs: tuple[str, ...] = ()
    emulated: str = ""

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


WAYS = [
    Way("AVX512-VNNI dot products", "-march=cascadelake", ("AVX512-VNNI",)),
    Way("AVX-VNNI dot products", "-march=haswell -mavxvnni", ("AVX-VNNI",)),
    Way("AVX512 products of 16 bits", "-march=skylake-avx512", ("AVX512",)),
    Way("AVX2 products of 16 bits", "-march=haswell", ("AVX2",)),
    Way("SSE2 products of 16 bits", "-march=x86-64", ("SSE2",)),
    Way("NEON I8MM dot products", "-march=armv8.2-a+dotprod+i8mm", ("I8MM",), "max"),
    Way("NEON dot products", "-march=armv8.2-a+dotprod", ("dot products",), "neoverse-n1"),
    Way("NEON products of 8 bits", "-march=armv8-a", ("NEON",), "cortex-a53"),
    Way("plain C", "-DMIXDQ_PLAIN"),
]


@dataclass(frozen=True)
class Case:
    """A product: windows of `kernel` over `channels` of a picture's channels, all but `spare`; `columns` outputs."""

    size: tuple[int, int, int]
    channels: int
    columns: int
    kernel: tuple[int, int] = (1, 1)
    bits: int = 8
    stride: int = 1
    rows_each: int = 0
    dtype: torch.dtype = torch.float32
    bias: bool = True
    threads: int = 1
    spare: int = 0
    floats: bool = False


CASES = [
    *(Case((1, 1, rows), 24, 40) for rows in range(1, 16)),
    *(Case((1, 1, 9), 20, columns, bias=False) for columns in (1, 3, 8, 15, 16, 17, 31, 32, 33, 64, 65)),
    *(Case((1, 1, 7), channels, 33, bits=4) for channels in (4, 8, 12, 16, 20, 36)),
    *(Case((2, 1, 13), 52, 70, bits=bits) for bits in packing.PACKED_BITS),
    *(Case((2, 3, 8), 12, 37, (3, 3), dtype=dtype, bits=5) for dtype in native.DTYPES),
    Case((2, 5, 8), 8, 40, (3, 2), stride=2, spare=4),
    Case((2, 5, 8), 8, 40, (1, 3), spare=8, bits=3),
    Case((1, 1, 29), 28, 40, rows_each=1),
    Case((3, 1, 10), 28, 40, rows_each=1, bits=6, dtype=torch.bfloat16),
    Case((3, 4, 5), 8, 70, (2, 2), rows_each=20, dtype=torch.float16),
    Case((1, 1, 200), 700, 1000, bits=4, threads=3),
    *(Case((1, 1, rows), 12, 33, bits=4, floats=True) for rows in range(1, 16)),
    Case((2, 3, 5), 8, 70, (3, 2), stride=2, spare=4, floats=True),
]


class Product:
    """A case with random numbers, among them the ends of both grids, and what must come of it.

    What comes of floats may be off by `error`, the bound for any order of summation; None: by nothing.
    """

    def __init__(self, case: Case, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        batch, height, width = case.size
        rows, taps = batch * height * width, case.kernel[0] * case.kernel[1]
        depth, panels, half = taps * case.channels, -(-case.columns // PANEL), 2 ** (case.bits - 1)
        groups = rows // case.rows_each if case.rows_each else 1
        pitch, line, picture = steps_of(case)
        padded = batch * picture
        steps = torch.tensor([picture, case.stride * line, case.stride * pitch])
        offsets = torch.cartesian_prod(*(torch.arange(count) for count in case.kernel)) @ torch.tensor([line, pitch])

        x = torch.randn(padded, generator=generator) if case.floats else integers(generator, 0, 256, padded)
        codes = integers(generator, -half, half, panels * PANEL, depth)
        zero_points = integers(generator, -half, half, panels * PANEL) if case.bits < 8 else None
        w = (codes if zero_points is None else codes - zero_points[:, None])[: case.columns].t()
        sums, scale = w.sum(0), torch.rand(case.columns, generator=generator)
        bias = torch.randn(case.columns, generator=generator) if case.bias else None
        x_zero_points = None if case.floats else integers(generator, -128, 128, groups)
        row_scales = torch.rand(groups, generator=generator) if case.rows_each else None

        at = torch.cartesian_prod(*(torch.arange(count) for count in case.size)) @ steps
        window = x[at[:, None, None] + offsets[:, None] + torch.arange(case.channels)].flatten(1)
        each = rows // groups
        if x_zero_points is None:
            total = (window.double() @ w.double()).float()
            self.error: Tensor | None = (depth + 4) * 2.0**-24 * (window.abs() @ w.abs().float() * scale + 4)
        else:
            total = (window @ w - (x_zero_points.repeat_interleave(each)[:, None] + 128) * sums).float()
            self.error = None
        y = total * (scale if row_scales is None else scale * row_scales.repeat_interleave(each)[:, None])
        self.y = (y if bias is None else y + bias).to(case.dtype)
        # A row of y is longer by a number that must stay.
        self.before = torch.full((rows, case.columns + 1), 7.0, dtype=case.dtype)

        unit = 4 if case.floats else 1
        numbers = [*case.size, *(steps * unit).tolist(), taps, case.channels, case.bits, case.columns]
        numbers += [case.rows_each, native.DTYPES[case.dtype], case.columns + 1, case.threads]
        order = codes.reshape(panels, PANEL, depth // 4, 4).transpose(1, 2).reshape(panels, -1).to(torch.int8)
        arrays = [
            x if case.floats else x.to(torch.uint8),
            offsets * unit,
            packing.pack(order, case.bits),
            None if zero_points is None else zero_points.to(torch.int8),
            sums.to(torch.int32),
            scale,
            bias,
            None if x_zero_points is None else x_zero_points.to(torch.int32),
            row_scales,
            self.before,
        ]
        contents = [b"" if array is None else bytes(array.contiguous().view(torch.uint8).numpy()) for array in arrays]
        self.written = struct.pack(f"={len(numbers)}q", *numbers)
        self.written += b"".join(struct.pack("=q", len(content)) + content for content in contents)

    def check(self, made: bytes) -> None:
        """Hold what came of it to what must."""
        found = torch.frombuffer(bytearray(made), dtype=self.y.dtype).reshape(self.before.shape)
        assert torch.equal(found[:, -1], self.before[:, -1])
        if self.error is None:
            assert torch.equal(found[:, :-1], self.y)
        else:
            assert bool(((found[:, :-1] - self.y).abs() <= self.error).all())

    @property
    def bytes(self) -> int:
        return self.before.numel() * self.before.element_size()


def steps_of(case: Case) -> tuple[int, int, int]:
    """Elements from a pixel to the next one, from a line to the next one, from a picture to the next one."""
    size = [(count - 1) * case.stride + taps for count, taps in zip(case.size[1:], case.kernel, strict=True)]
    pitch = case.channels + case.spare
    return pitch, size[1] * pitch, size[0] * size[1] * pitch


def integers(generator: torch.Generator, low: int, high: int, *shape: int) -> Tensor:
    """Random integers from `low` to `high` - 1, a fifth of them at the ends."""
    inner = torch.randint(low, high, shape, generator=generator)
    ends = torch.where(torch.rand(shape, generator=generator) < 0.5, low, high - 1)
    return torch.where(torch.rand(shape, generator=generator) < 0.2, ends, inner)


@pytest.fixture(scope="module", params=WAYS, ids=str)
def tiles(request, tmp_path_factory) -> list[str]:
    """The words that run tiles.c, compiled in one way."""
    way: Way = request.param
    arm = bool(way.emulated)
    emulator = []
    if way.needs and not (ARM if arm else X86):
        if not arm or not (found := shutil.which("qemu-aarch64")):
            pytest.skip(f"no {'emulator (qemu-aarch64)' if arm else 'x86 processor'}")
        emulator = [found, "-cpu", way.emulated]
    elif missing := set(way.needs) - set(processor.features() or way.needs):
        pytest.skip(f"the processor has no {', '.join(missing)}")
    name = "aarch64-linux-gnu-gcc" if emulator else "gcc"
    if not shutil.which(name):
        pytest.skip(f"no {name}")
    made = tmp_path_factory.mktemp("tiles") / "tiles"
    sources = [Path(__file__).with_name("tiles.c"), *(native.FOLDER / name for name in ("products.c", "weights.c"))]
    # What the tests of the backend compile for this machine is optimized; here it is enough to be quick.
    options = [option for option in compiler.OPTIONS if option not in ("-shared", "-fPIC", "-O3")]
    words = [
        *options,
        "-O1",
        *way.options.split(),
        *(["-static"] if emulator else []),
        "-fopenmp",
        f"-I{native.FOLDER}",
        *map(str, sources),
        "-lm",
        "-o",
        str(made),
    ]
    done = subprocess.run([name, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = [*emulator, str(made)]
    assert subprocess.run([*run, "name"], capture_output=True, text=True, check=True).stdout.strip() == way.name
    return run


def test_products_are_exact_and_their_ends_round_as_the_formula_says(tiles: list[str]) -> None:
    products = [Product(case, seed) for seed, case in enumerate(CASES)]
    written = b"".join(product.written for product in products)
    done = subprocess.run([*tiles, "products"], input=written, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    made = io.BytesIO(done.stdout)
    for product in products:
        product.check(made.read(product.bytes))
    assert not made.read()


def test_float16_is_ieee_754s_both_ways(tiles: list[str]) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = halves.astype(np.float32)
    finite = np.sort(every[np.isfinite(every)])
    # Numbers between two of float16: in the middle, and a hair to either side.
    middle = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    beyond = np.array([65519.996, 65520.0, 1e30, np.inf, -np.inf, 1e-30, -1e-45], dtype=np.float32)
    hairs = [np.nextafter(middle, np.float32(sign * np.inf)) for sign in (-1, 1)]
    floats = np.concatenate([finite, middle, *hairs, beyond])
    done = subprocess.run([*tiles, "float16"], input=floats.tobytes(), capture_output=True, check=True)
    wide = np.frombuffer(done.stdout[: 4 * 2**16], dtype=np.float32)
    assert np.array_equal(np.isnan(wide), np.isnan(every))
    assert np.array_equal(wide[~np.isnan(every)].view(np.uint32), every[~np.isnan(every)].view(np.uint32))
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16).view(np.uint16)
    assert np.array_equal(np.frombuffer(done.stdout[4 * 2**16 :], dtype=np.uint16), expected)
