"""Candidates in processes of their own: each has its own peak memory, and its end is not the benchmark's.

What a candidate or its libraries say goes to a file; the last line of it is the reason where one ends early.
"""

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks import measuring
from benchmarks.candidates import CANDIDATES
from benchmarks.case import Case, MissingError
from mixdq.evaluation.memory import peak_resident_bytes

SECONDS_TO_SLEEP = 0.1
"""After a call its threads may look for more work for a while before they sleep; the next candidate waits for that."""
SECONDS_BETWEEN_LOOKS = 10.0
"""How often an idle worker looks whether its parent still lives."""
_GO, _STOP = "go", "stop"

# Forking saves every worker the imports. Nothing may have been computed before: threads do not survive it.
_CONTEXT = multiprocessing.get_context("fork") if sys.platform == "linux" else multiprocessing.get_context("spawn")


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A candidate that runs: seconds of its first call, bytes of its weights."""

    first_call: float
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One call: its seconds, the most memory so far, and the share of the machine's time that others took meanwhile.

    The share is None where the system does not tell or the call was too short to say.
    """

    seconds: float
    peak_bytes: int
    others: float | None


class Worker:
    """The process of one candidate, which begins to load at once."""

    def __init__(self, name: str, case: Case, logs: Path) -> None:
        self.name = name
        self.log = _log(logs, name)
        self._connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(name, case, theirs, os.getpid(), self.log))
        self._process.start()
        theirs.close()

    def ready(self) -> Ready:
        """Wait until it has been called once; raise MissingError where it cannot run, with the reason."""
        answer = self._answer()
        assert isinstance(answer, Ready)
        return answer

    def turn(self) -> Turn:
        """Have it called once; raises as `ready`."""
        time.sleep(SECONDS_TO_SLEEP)
        with contextlib.suppress(ConnectionError):
            self._connection.send(_GO)
        answer = self._answer()
        assert isinstance(answer, Turn)
        return answer

    def stop(self) -> None:
        """End it; what has ended already is no error."""
        with contextlib.suppress(ConnectionError):
            self._connection.send(_STOP)
        self._process.join()
        self._connection.close()

    def _answer(self) -> object:
        try:
            answer: object = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise MissingError(_last_words(self.log, self._process.exitcode)) from None
        if isinstance(answer, str):
            raise MissingError(answer)
        return answer


def prepare(name: str, case: Case, logs: Path) -> None:
    """Do the steps that a candidate needs done before, each in a process of its own; raises MissingError."""
    for number, _ in enumerate(CANDIDATES[name].steps):
        ours, theirs = _CONTEXT.Pipe(duplex=False)
        log = _log(logs, f"{name}, step {number + 1}")
        process = _CONTEXT.Process(target=_prepare, args=(name, number, case, theirs, log))
        process.start()
        theirs.close()
        process.join()
        if process.exitcode:
            raise MissingError(_last_words(log, process.exitcode))
        reason = ours.recv()
        if reason:
            raise MissingError(reason)


def _serve(name: str, case: Case, connection: Connection, parent: int, log: Path) -> None:
    """Load, say so, then call once for every message until the one to stop, or the parent is gone."""
    _speak_into(log)
    torch.manual_seed(0)
    try:
        loaded = CANDIDATES[name].load(case)
    except MissingError as reason:
        connection.send(str(reason))
        return
    with torch.inference_mode():
        cold = measuring.seconds_of(loaded.call)
        connection.send(Ready(first_call=cold, weight_bytes=loaded.weight_bytes))
        while _next(connection, parent) == _GO:
            connection.send(_turn(loaded.call))


def _next(connection: Connection, parent: int) -> object:
    # A pipe tells nothing of the parent's end: forked workers hold copies of one another's.
    while not connection.poll(SECONDS_BETWEEN_LOOKS):
        if os.getppid() != parent:
            return _STOP
    message: object = connection.recv()
    return message


def _turn(call: Callable[[], object]) -> Turn:
    busy, mine = measuring.machine_busy_seconds(), time.process_time()
    seconds = measuring.seconds_of(call)
    mine = time.process_time() - mine
    after = measuring.machine_busy_seconds()
    others = None
    if busy is not None and after is not None and seconds >= measuring.SECONDS_TO_TELL:
        others = max(0.0, after - busy - mine) / (seconds * (os.cpu_count() or 1))
    return Turn(seconds=seconds, peak_bytes=peak_resident_bytes(), others=others)


def _prepare(name: str, number: int, case: Case, connection: Connection, log: Path) -> None:
    _speak_into(log)
    torch.manual_seed(0)
    try:
        CANDIDATES[name].steps[number](case)
        connection.send("")
    except MissingError as reason:
        connection.send(str(reason))


def _speak_into(log: Path) -> None:
    """Send this process's output and errors, those of its libraries too, to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)


def _log(folder: Path, name: str) -> Path:
    return folder / ("".join(letter if letter.isalnum() else "-" for letter in name) + ".log")


def _last_words(log: Path, exit_code: int | None) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was said")
    return f"it ended with code {exit_code}: {said}"
