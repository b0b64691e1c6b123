"""A library made of C files on the machine that runs it: compiled once, kept in the user's cache folder, loaded.

Its name is made of its source, the compiler (its file, size and date), the options and the processor, so that nothing
stale is ever loaded, and no process is started where it lies ready.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mixdq.runtime.kernels import openmp, processor

COMPILERS = ("gcc", "cc", "clang")
"""Where the variable CC names none, the first that is there. Why gcc comes first, `openmp` says."""
# No option here may change a float's last bit: quantizing must give the reference's codes.
OPTIONS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
SECONDS_TO_COMPILE = 600
SECONDS_TO_PROBE = 60
KEPT = 8
"""Libraries that stay in the cache folder: of other sources, compilers, processors."""
LEFT_OVER_SECONDS = 3600
"""Age from which a folder that a compiler worked in has lost its process."""

_OPENMP = "#include <omp.h>\nint one(void) { return omp_get_max_threads(); }\n"
_ANYTHING = "int one(void) { return 1; }\n"


class CompilerError(Exception):
    """No library could be made; the text says why, in one line."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A library, and the OpenMP runtimes that came with it beside the one that was there: names of files."""

    library: ctypes.CDLL
    second_runtimes: tuple[str, ...]


def load(sources: Path) -> Loaded:
    """Return the library of the C files in the folder `sources`, compiled if need be.

    Without OpenMP it has a name of its own, and each start asks the compiler again.

    Raises:
        CompilerError: there is no compiler, it fails or finds no end, or there is no room for what it makes.
    """
    compiler = find()
    folder, name = cache_folder(), f"native-{_digest(sources, compiler)}"
    path = folder / f"{name}.so"
    if (loaded := _load(path)) is not None:
        return loaded
    parallel = _accepts(compiler, ["-fopenmp"], _OPENMP)
    if not parallel:
        path = folder / f"{name}-serial.so"
        if (loaded := _load(path)) is not None:
            return loaded
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    here = [native] if _accepts(compiler, [native], _ANYTHING) else []
    files = map(str, sorted(sources.glob("*.c")))
    bound = ["-fopenmp", *openmp.options()] if parallel else []
    _compile([*compiler, *OPTIONS, *here, *files, *bound, "-lm"], path)
    _tidy(folder)
    try:
        return _opened(path)
    except OSError as error:
        raise CompilerError(f"{path} cannot be loaded: {error}. XDG_CACHE_HOME names another folder.") from error


def find() -> list[str]:
    """Return the compiler as words of a command: those of the variable CC, else the first of `COMPILERS`.

    Raises:
        CompilerError: there is none.
    """
    named = os.environ.get("CC")
    for words in [_words(named)] if named else [[name] for name in COMPILERS]:
        if words and shutil.which(words[0]):
            return words
    looked_for = named or ", ".join(COMPILERS)
    raise CompilerError(f"no C compiler found ({looked_for}): install one (Debian: apt-get install gcc) or set CC")


def cache_folder() -> Path:
    """Return a folder that only this user can write to, made if absent: the cache's, else a temporary one.

    Raises:
        CompilerError: there is no such folder, nor can one be made.
    """
    temporary = Path(tempfile.gettempdir())
    root = os.environ.get("XDG_CACHE_HOME")
    wanted = [Path(root) / "mixdq"] if root else []
    with suppress(RuntimeError):
        wanted += [] if root else [Path.home() / ".cache" / "mixdq"]
    wanted += [temporary / f"mixdq-{os.getuid()}"] if os.name == "posix" else []
    for folder in wanted:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if _own(folder):
                return folder
    try:
        return Path(tempfile.mkdtemp(prefix="mixdq-"))
    except OSError as error:
        raise CompilerError(f"no folder for the compiled kernels: {error}. XDG_CACHE_HOME names one.") from error


def _own(folder: Path) -> bool:
    """Return whether this user can write to it, and nobody else: what others write could be a library of theirs."""
    facts = folder.lstat()
    own = os.name != "posix" or (facts.st_uid == os.getuid() and not facts.st_mode & 0o022)
    return own and folder.is_dir() and os.access(folder, os.W_OK)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise CompilerError(f"CC = {command!r} is no command: {error}") from error


def _digest(sources: Path, compiler: Sequence[str]) -> str:
    runtime = openmp.runtimes()[:1]
    try:
        source = [part for path in sorted(sources.iterdir()) for part in (path.name.encode(), path.read_bytes())]
    except OSError as error:
        raise CompilerError(f"the kernels' source cannot be read: {error}") from error
    words = [*compiler, *(_identity(word) for word in compiler), *OPTIONS, *(path.name for path in runtime)]
    facts = [*source, *(word.encode() for word in words), _machine().encode()]
    lengths = ",".join(str(len(fact)) for fact in facts).encode()
    return hashlib.sha256(lengths + b"".join(facts)).hexdigest()[:20]


def _identity(word: str) -> str:
    """Return what stands for a compiler's version: another one has another file, size or date."""
    found = shutil.which(word)
    if found is None:
        return ""
    path = Path(found).resolve()
    facts = path.stat()
    return f"{path} {facts.st_size} {facts.st_mtime_ns}"


def _machine() -> str:
    """Return what the compiler's choice of instructions rests on; the machine's name where the system says no more."""
    names = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")
    said = processor.identity()
    chosen = [said.get(name) for name in names] if said else platform.node()
    return f"{platform.system()} {platform.machine()} {chosen}"


def _load(path: Path) -> Loaded | None:
    """Return the library; None where it is not there, or damaged."""
    try:
        return _opened(path) if path.exists() else None
    except OSError:
        return None


def _opened(path: Path) -> Loaded:
    before = openmp.runtimes()
    library = ctypes.CDLL(str(path))
    more = set(openmp.runtimes()) - set(before) if before else set()
    return Loaded(library=library, second_runtimes=tuple(sorted(runtime.name for runtime in more)))


def _accepts(compiler: Sequence[str], options: Sequence[str], program: str) -> bool:
    words = [*compiler, *options, "-x", "c", "-shared", "-fPIC", "-o", os.devnull, "-"]
    return _run(words, SECONDS_TO_PROBE, program)[0] == 0


def _compile(words: Sequence[str], path: Path) -> None:
    """Compile into a file beside `path`, then swap: two processes may do it at once."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="making-", ignore_cleanup_errors=True) as folder:
            made = Path(folder) / path.name
            status, said = _run([*words, "-o", str(made)], SECONDS_TO_COMPILE)
            if status != 0:
                lines = [line.strip() for line in said.splitlines() if line.strip()] or [f"it ended with {status}"]
                first = next((line for line in lines if "error" in line), lines[-1])
                raise CompilerError(f"{words[0]} failed on the kernels: {first[:300]}")
            os.replace(made, path)
    except OSError as error:
        raise CompilerError(f"no room for the compiled kernels in {path.parent}: {error}") from error


def _run(words: Sequence[str], seconds: float, program: str = "") -> tuple[int, str]:
    """Return the exit status and what was said on stderr, in English."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            words,
            stdin=pipe,
            stdout=subprocess.DEVNULL,
            stderr=pipe,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:
        raise CompilerError(f"{words[0]} cannot be run: {error}") from error
    with process:
        try:
            said = process.communicate(program, timeout=seconds)[1]
        except subprocess.TimeoutExpired as error:
            raise CompilerError(f"{words[0]} found no end in {seconds:g} s") from error
        finally:
            if process.poll() is None:
                _end(process)
    return process.returncode, said


def _end(process: subprocess.Popen[str]) -> None:
    # A compiler is a process that starts others; they are a group, for they got a session of their own.
    if os.name == "posix":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _tidy(folder: Path) -> None:
    """Remove all but the newest libraries, and what processes that were killed have left."""
    with suppress(OSError):
        libraries = sorted(folder.glob("native-*.so"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in libraries[KEPT:]:
            path.unlink(missing_ok=True)
        for path in folder.glob("making-*"):
            if time.time() - path.stat().st_mtime > LEFT_OVER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
