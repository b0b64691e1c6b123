"""Two nodes of Ray on one machine, as `ray start` begins them on two."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

SECONDS_TO_START = 120.0
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token"}
"""Of the nodes and of whoever connects to them; the token is this user's, which Ray keeps."""


class Nodes:
    """A head and a second node, with one processor each; what they say goes into files of the folder `logs`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._nodes = [self._start("head", "--head", f"--port={port}", "--include-dashboard=false")]
        try:
            self._wait("head")
            self._nodes.append(self._start("second", f"--address={self.address}"))
            self._wait("second")
        except TimeoutError:
            self.stop()
            raise

    def workers(self) -> list[psutil.Process]:
        """Return the processes that score trials."""
        return [
            process for node in self._nodes for process in _children(node) if _words(process).startswith("ray::Worker")
        ]

    def lose(self) -> None:
        """Kill all that the second node consists of at once, as if its plug were pulled."""
        self._kill(self._nodes.pop())

    def stop(self) -> None:
        """End what there is."""
        while self._nodes:
            self._kill(self._nodes.pop())

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--block", *words]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
        with (self._logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def _wait(self, name: str) -> None:
        """Wait until a node says that it runs."""
        log, end = self._logs / f"{name}.log", time.monotonic() + SECONDS_TO_START
        while "Ray runtime started" not in log.read_text(encoding="utf-8"):
            if time.monotonic() > end:
                raise TimeoutError(f"no node after {SECONDS_TO_START:.0f} s: {log.read_text(encoding='utf-8')}")
            time.sleep(0.1)

    def _kill(self, node: subprocess.Popen[bytes]) -> None:
        for process in _children(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def _children(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(node.pid).children(recursive=True)
    return found


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""
