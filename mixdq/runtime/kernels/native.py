"""The library of the C files beside this one: compiled once on the machine that runs it, kept, and loaded.

A compiler is looked for where the variable CC says, else `cc`, `gcc`, `clang`. The library lies in the user's cache
folder under a name made of its source, its compiler and the processor, so that nothing stale is ever loaded.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from mixdq.quant.packing import packed_row_bytes

FOLDER = Path(__file__).with_name("c")
COMPILERS = ("cc", "gcc", "clang")
# No option here may change a float's last bit: quantizing must give the reference's codes.
OPTIONS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
SECONDS_TO_COMPILE = 120
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Float dtypes that the kernels read and write -> the number by which they know them."""

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES: dict[str, list[type]] = {
    "mixdq_way": [],
    "mixdq_quantize": [_POINTER, _INT, *[_SIZE] * 11, _POINTER, _POINTER, _INT, _INT, _INT, _POINTER],
    "mixdq_product": [
        *[_POINTER, *[_SIZE] * 6],
        *[_POINTER, _SIZE, _SIZE],
        *[_POINTER, _INT, _POINTER, _SIZE, _POINTER, _POINTER, _POINTER],
        *[_POINTER, _POINTER, _SIZE],
        *[_POINTER, _INT, _SIZE, _INT],
    ],
    "mixdq_pack": [_POINTER, _SIZE, _SIZE, _INT, _POINTER],
    "mixdq_unpack": [_POINTER, _SIZE, _SIZE, _INT, _POINTER],
}


class CompilerError(Exception):
    """No library could be made; the text says why, in one line."""


@functools.cache
def library() -> ctypes.CDLL:
    """Return the loaded library.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    compiler = _compiler()
    options = [*OPTIONS, *_options_here(compiler)]
    facts = [*(path.read_bytes() for path in sorted(FOLDER.iterdir())), _version(compiler), " ".join(options).encode(), _processor().encode()]
    path = _cache() / f"native-{hashlib.sha256(b'/'.join(facts)).hexdigest()[:20]}.so"
    loaded = _load(path) if path.exists() else None
    if loaded is None:
        _compile([*compiler, *options, *map(str, sorted(FOLDER.glob("*.c")))], path)
        loaded = _load(path)
    if loaded is None:
        raise CompilerError(f"{' '.join(compiler)} made {path}, which cannot be loaded")
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


def description() -> str:
    """Return in a few words what the kernels run on here, or why they do not."""
    reason = trouble()
    if reason:
        return f"none: {reason}"
    way: bytes = library().mixdq_way()
    return way.decode()


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _compiler() -> list[str]:
    named = os.environ.get("CC")
    for words in [shlex.split(named)] if named else [[name] for name in COMPILERS]:
        if words and shutil.which(words[0]):
            return words
    looked_for = named or ", ".join(COMPILERS)
    raise CompilerError(f"no C compiler found ({looked_for}): install one (Debian: apt-get install gcc) or set CC")


def _options_here(compiler: list[str]) -> list[str]:
    """Return the options of this machine that the compiler knows."""
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    return [option for option in (native, "-fopenmp") if _accepts(compiler, option)]


def _accepts(compiler: list[str], option: str) -> bool:
    words = [*compiler, option, "-x", "c", "-shared", "-fPIC", "-o", os.devnull, "-"]
    return _run(words, input="int one(void) { return 1; }\n").returncode == 0


def _version(compiler: list[str]) -> bytes:
    return _run([*compiler, "--version"]).stdout.encode()


def _run(words: list[str], input: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, input=input, capture_output=True, text=True, timeout=SECONDS_TO_COMPILE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{words[0]}: {error}") from error


def _processor() -> str:
    capabilities = torch.backends.cpu.get_cpu_capability()
    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()} {capabilities} {model}"


def _cache() -> Path:
    """Return a folder that only this user can write to, made if absent; a temporary one where that cannot be."""
    root = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(root) if root else Path.home() / ".cache") / "mixdq"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        facts = folder.stat()
        # What others can write to could hold a library of theirs.
        own = os.name != "posix" or (facts.st_uid == os.getuid() and not facts.st_mode & 0o022)
        if own and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="mixdq-"))


def _compile(words: list[str], path: Path) -> None:
    """Compile into a file beside `path`, then swap: two processes may do it at once."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        done = _run([*words, "-o", str(made), "-lm"])
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            raise CompilerError(f"{words[0]} failed on the kernels: {first}")
        os.replace(made, path)
