"""The library of the C files beside this one: loaded, described to Python, and its plainest functions.

Where it comes from, `compiler` says; that it is compiled on the machine that runs it shows in what it runs on.
"""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from mixdq.quant.packing import packed_row_bytes
from mixdq.runtime.kernels import compiler
from mixdq.runtime.kernels.compiler import CompilerError

FOLDER = Path(__file__).with_name("c")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Float dtypes that the kernels read and write -> the number by which they know them."""

NOT_FINITE = 1
"""What `mixdq_layer` returns where its input cannot become codes; 0 is success, everything else a lack of memory."""

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES: dict[str, list[type]] = {
    "mixdq_way": [],
    "mixdq_quantize": [_POINTER, _INT, *[_SIZE] * 11, _POINTER, _POINTER, _INT, _INT, _INT, _POINTER],
    "mixdq_own_scales": [_POINTER, _INT, *[_SIZE] * 8, _INT, _INT, _POINTER, _POINTER, _POINTER],
    "mixdq_layer": [_POINTER, _POINTER, _INT, *[_SIZE] * 7, _POINTER, _INT],
    "mixdq_attention": [
        *[_POINTER, _SIZE, _SIZE],
        *[_POINTER, _SIZE, _SIZE],
        *[_POINTER, _SIZE, _SIZE],
        *[_INT, *[_SIZE] * 5, ctypes.c_float],
        *[_POINTER, _INT],
    ],
    "mixdq_geglu": [_POINTER, _INT, _SIZE, _SIZE, _POINTER, _INT],
    "mixdq_pack": [_POINTER, _SIZE, _SIZE, _INT, _POINTER],
    "mixdq_unpack": [_POINTER, _SIZE, _SIZE, _INT, _POINTER],
    "mixdq_row_sums": [_POINTER, _SIZE, _SIZE, _POINTER],
}


@functools.cache
def library() -> ctypes.CDLL:
    """Return the loaded library.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    loaded = _loaded().library
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    loaded.mixdq_way.restype = ctypes.c_char_p
    return loaded


@functools.cache
def trouble() -> str | None:
    """Return why there is no library, in words; None where there is one."""
    try:
        library()
    except CompilerError as error:
        return str(error)
    return None


def pack(codes: Tensor, num_bits: int) -> Tensor:
    """Return what `mixdq.quant.packing.pack` does of codes [rows, columns] that fit, in a fraction of its time.

    Raises:
        CompilerError: there is no library.
    """
    if num_bits == 8:
        return codes
    codes = codes.contiguous()
    rows, columns = codes.shape
    packed = torch.empty(rows, packed_row_bytes(columns, num_bits), dtype=torch.uint8)
    library().mixdq_pack(codes.data_ptr(), rows, columns, num_bits, packed.data_ptr())
    return packed


def unpack(packed: Tensor, num_bits: int, columns: int) -> Tensor:
    """Return what `mixdq.quant.packing.unpack` does; raises as `pack`."""
    if num_bits == 8:
        return packed
    packed = packed.contiguous()
    codes = torch.empty(len(packed), columns, dtype=torch.int8)
    library().mixdq_unpack(packed.data_ptr(), len(packed), columns, num_bits, codes.data_ptr())
    return codes


def row_sums(codes: Tensor) -> Tensor:
    """Return the sum int32 [rows] of each row of codes int8 [rows, columns]; raises as `pack`."""
    codes = codes.contiguous()
    sums = torch.empty(len(codes), dtype=torch.int32)
    library().mixdq_row_sums(codes.data_ptr(), *codes.shape, sums.data_ptr())
    return sums


def description() -> str:
    """Return in a few words what the kernels run on here, or why they do not."""
    reason = trouble()
    if reason:
        return f"none: {reason}"
    way: bytes = library().mixdq_way()
    beside = _loaded().second_runtimes
    second = (
        f"; beside torch's OpenMP runtime {', '.join(beside)}, whose threads hinder it: set CC to gcc" if beside else ""
    )
    return way.decode() + second


@functools.cache
def _loaded() -> compiler.Loaded:
    return compiler.load(FOLDER)
