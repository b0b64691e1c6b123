import errno
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mixdq.runtime.kernels import compiler, openmp
from mixdq.runtime.kernels.compiler import CompilerError

SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """C files of a small library."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.c").write_text(SOURCE)
    return folder


@pytest.fixture
def cache(monkeypatch, tmp_path: Path) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mixdq"


@pytest.fixture
def real() -> list[str]:
    try:
        return compiler.find()
    except CompilerError as error:
        pytest.skip(str(error))


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.so"))


def answer(sources: Path) -> int:
    found: int = compiler.load(sources).library.answer()
    return found


def test_it_is_compiled_once_into_a_folder_of_the_user_alone(real, sources, cache) -> None:
    assert answer(sources) == 42
    (made,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    before = made.stat().st_mtime_ns
    assert answer(sources) == 42
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [before]


def test_a_library_that_lies_ready_starts_no_process(real, sources, cache, monkeypatch) -> None:
    if not compiler._accepts(real, ["-fopenmp"], compiler._OPENMP):
        pytest.skip("without OpenMP the compiler is asked at each start")
    compiler.load(sources)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert answer(sources) == 42


def test_another_source_another_compiler_and_other_options_of_it_make_another_library(
    real, sources, cache, monkeypatch, tmp_path
) -> None:
    compiler.load(sources)
    (sources / "answer.c").write_text(SOURCE.replace("42", "43"))
    assert answer(sources) == 43
    wrapper = script(tmp_path / "wrapper", f'exec {real[0]} "$@"')
    monkeypatch.setenv("CC", wrapper)
    compiler.load(sources)
    os.utime(wrapper, ns=(0, 0))
    compiler.load(sources)
    monkeypatch.setenv("CC", f"{wrapper} -DMORE")
    compiler.load(sources)
    assert len(libraries(cache)) == 5


def test_a_damaged_library_is_made_again(real, sources, cache, monkeypatch, tmp_path) -> None:
    compiler.load(sources)
    (made,) = libraries(cache)
    # Elsewhere, for a file that is loaded already is not looked at again.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    damaged = tmp_path / "other" / "mixdq" / made.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not a library")
    assert answer(sources) == 42
    assert len(damaged.read_bytes()) > 1000


def test_processes_that_compile_at_once_all_get_it(real, sources, cache) -> None:
    program = "import sys, pathlib; from mixdq.runtime.kernels import compiler; " + (
        "print(compiler.load(pathlib.Path(sys.argv[1])).library.answer())"
    )
    words = [sys.executable, "-c", program, str(sources)]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == ["42\n"] * 2
    assert len(list(cache.iterdir())) == 1


def test_the_cache_keeps_a_bounded_number_of_libraries_and_no_folder_of_the_dead(real, sources, cache) -> None:
    compiler.load(sources)
    old = [cache / f"native-{number}.so" for number in range(compiler.KEPT + 3)]
    for age, path in enumerate(old):
        path.write_bytes(b"")
        os.utime(path, (1e9 - age, 1e9 - age))
    left = cache / "making-left"
    left.mkdir()
    (left / "half").write_bytes(b"")
    os.utime(left, (1e9, 1e9))
    (cache / "making-now").mkdir()
    (sources / "answer.c").write_text(SOURCE.replace("42", "44"))
    assert answer(sources) == 44
    kept = libraries(cache)
    assert len(kept) == compiler.KEPT
    assert set(old[: compiler.KEPT - 2]) <= set(kept)
    assert [path.name for path in cache.glob("making-*")] == ["making-now"]


def test_without_openmp_it_has_one_thread_until_the_compiler_learns_it(
    real, sources, cache, monkeypatch, tmp_path
) -> None:
    knows = tmp_path / "knows"
    text = f'[ -e {knows} ] || case " $* " in *" -fopenmp "*) exit 1;; esac\nexec {real[0]} "$@"'
    monkeypatch.setenv("CC", script(tmp_path / "serial", text))
    (sources / "answer.c").write_text(
        "#ifdef _OPENMP\nint answer(void) { return 2; }\n#else\nint answer(void) { return 1; }\n#endif\n"
    )
    assert answer(sources) == 1
    before = [path.stat().st_mtime_ns for path in libraries(cache)]
    assert answer(sources) == 1
    assert [path.stat().st_mtime_ns for path in libraries(cache)] == before
    if compiler._accepts(real, ["-fopenmp"], compiler._OPENMP):
        knows.touch()
        assert answer(sources) == 2


def test_threads_are_those_of_torchs_runtime(real, sources, cache) -> None:
    before = openmp.runtimes()
    if not before or not compiler._accepts(real, ["-fopenmp"], compiler._OPENMP):
        pytest.skip("the system does not say which runtimes there are, or the compiler has none")
    (sources / "answer.c").write_text("#include <omp.h>\nint answer(void) { return omp_get_max_threads() > 0; }\n")
    loaded = compiler.load(sources)
    assert loaded.library.answer() == 1
    added = set(openmp.runtimes()) - set(before)
    assert loaded.second_runtimes == tuple(sorted(path.name for path in added))
    if "gcc" in Path(real[0]).name and before[0].name.startswith("libgomp"):
        assert not added


def test_without_a_compiler_the_reason_says_what_to_install(cache, sources, monkeypatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(CompilerError, match=r"no C compiler found \(no-such-compiler\).*apt-get install gcc"):
        compiler.load(sources)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompilerError, match=r"no C compiler found \(gcc, cc, clang\)"):
        compiler.load(sources)
    monkeypatch.setenv("CC", "gcc 'unclosed")
    with pytest.raises(CompilerError, match="is no command"):
        compiler.load(sources)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo 'a.c:1: warning: odd' >&2; echo 'a.c:2: error: out of letters' >&2; exit 1", "error: out of letters"),
        ("echo 'cannot find cc1' >&2; exit 1", "cannot find cc1"),
        ("exit 3", "it ended with 3"),
        ("kill -9 $$", "it ended with -9"),
    ],
)
def test_a_compiler_that_fails_is_named_with_its_first_error(text, said, sources, cache, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CC", script(tmp_path / "failing", text))
    with pytest.raises(CompilerError, match=f"failing failed on the kernels: .*{said}"):
        compiler.load(sources)
    assert list(cache.iterdir()) == []


def test_a_compiler_without_end_is_ended_with_all_it_started(sources, cache, monkeypatch, tmp_path) -> None:
    child = tmp_path / "child"
    monkeypatch.setenv("CC", script(tmp_path / "endless", f"sleep 100 & echo $! > {child}; wait"))
    monkeypatch.setattr(compiler, "SECONDS_TO_PROBE", 1.0)
    with pytest.raises(CompilerError, match=r"endless found no end in 1 s"):
        compiler.load(sources)
    number = int(child.read_text())
    # Whoever adopts it reaps it in its own time.
    for _ in range(100):
        state = Path(f"/proc/{number}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"process {number} lives on")


def test_no_room_for_the_library_is_said(real, sources, cache, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(compiler.os, "replace", full)
    with pytest.raises(CompilerError, match=rf"{cache}: .*No space left"):
        compiler.load(sources)


@pytest.mark.skipif(os.name != "posix", reason="permissions are a POSIX matter")
def test_a_folder_that_others_can_write_to_is_not_used(cache, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(compiler.tempfile, "tempdir", str(tmp_path))
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    assert compiler.cache_folder() == tmp_path / f"mixdq-{os.getuid()}"
    (tmp_path / f"mixdq-{os.getuid()}").chmod(0o777)
    own = compiler.cache_folder()
    assert own.parent == tmp_path
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    cache.chmod(0o700)
    assert compiler.cache_folder() == cache


def test_without_any_folder_the_reason_is_said(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiler.tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(CompilerError, match="no folder for the compiled kernels"):
        compiler.cache_folder()


def test_an_interrupted_start_leaves_no_compiler_behind(sources, cache, monkeypatch, tmp_path) -> None:
    child = tmp_path / "child"
    monkeypatch.setenv("CC", script(tmp_path / "endless", f"echo $$ > {child}; exec sleep 100"))

    def interrupt(process: subprocess.Popen[str], *_: object, **__: object) -> None:
        while not child.exists() or not child.read_text():
            threading.Event().wait(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compiler.load(sources)
    with pytest.raises(ProcessLookupError):
        os.kill(int(child.read_text()), 0)
