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
            self._wait()
            self._nodes.append(self._start("second", f"--address={self.address}"))
            self._wait()
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
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
        with (self._logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def _wait(self) -> None:
        """Wait until the last node has workers to offer."""
        end = time.monotonic() + SECONDS_TO_START
        while not any(_words(process).startswith("ray::IDLE") for process in _children(self._nodes[-1])):
            if time.monotonic() > end:
                raise TimeoutError(f"no node after {SECONDS_TO_START:.0f} s; see the logs in {self._logs}")
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
