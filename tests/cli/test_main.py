import errno
import importlib.metadata
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from mixdq.cli import main
from mixdq.errors import ConfigError, MixDQError

VERBS = sorted(main.VERBS)


def call(*words: object):
    return CliRunner().invoke(main.app, [str(word) for word in words])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb) -> None:
    done = call(verb, "--help")
    assert done.exit_code == 0
    assert " ".join(main.VERBS[verb].split()) in " ".join(done.stdout.split())


def test_help_lists_every_verb() -> None:
    done = call("--help")
    assert done.exit_code == 0
    assert all(verb in done.stdout for verb in VERBS)


def test_version_is_that_of_the_package() -> None:
    assert call("--version").stdout == f"mixdq {importlib.metadata.version('mixdq')}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["quantise"],
        ["allocate"],
        ["allocate", "run", "--weight-bits", "few"],
        ["quantize", "model"],
        ["report", "run", "--colour"],
        ["doctor", "more"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(words) -> None:
    done = call(*words)
    assert done.exit_code == 2
    assert "Usage" in done.stderr
    assert "Traceback" not in done.stderr


def guard(error: BaseException):
    app = typer.Typer(pretty_exceptions_enable=False)

    def verb() -> None:
        raise error

    app.command()(main.guarded(verb))
    return CliRunner().invoke(app, [])


def test_mistake_is_exit_code_1_and_one_line() -> None:
    done = guard(ConfigError("the setting [x] is unknown: " + "long " * 60))
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: the setting [x] is unknown: long")


def test_interruption_is_exit_code_130_and_says_what_to_do() -> None:
    done = guard(KeyboardInterrupt())
    assert done.exit_code == 130
    assert done.stderr == "interrupted; the same command goes on from here.\n"


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "no permission to write"),
        (errno.EROFS, "no permission to write"),
        (errno.ENAMETOOLONG, "File name too long"),
    ],
)
def test_refusals_of_the_system_are_worded_with_their_file(number, says) -> None:
    done = guard(OSError(number, __import__("os").strerror(number), "some/file"))
    assert done.exit_code == 1
    assert says in done.stderr
    assert "(some/file)" in done.stderr
    assert done.stderr.count("\n") == 1


def test_our_own_mistakes_keep_their_traceback() -> None:
    done = guard(AssertionError("ours"))
    assert isinstance(done.exception, AssertionError)


def test_verbose_raises_the_very_error() -> None:
    main.State.verbose = True
    try:
        assert isinstance(guard(ConfigError("x")).exception, MixDQError)
    finally:
        main.State.verbose = False


@pytest.mark.parametrize("verbose", [False, True])
def test_traceback_is_shown_with_v_only(tmp_path, verbose) -> None:
    words = [*(["-v"] if verbose else []), "report", str(tmp_path)]
    code = f"import sys; from mixdq.cli.main import app; sys.argv = ['mixdq', *{words!r}]; app()"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no run in it" in done.stderr
    assert ("Traceback" in done.stderr) == verbose
