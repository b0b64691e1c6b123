"""Run by the fixture `launch`: imports once, then runs `mixdq` in a process of its own for every line it is sent.

A line is JSON: words; stderr (a file); die_at_sync (the process kills itself before that call of fsync, or null);
file_limit (greatest bytes of a file, or null). The replies are the process id, and in the end the exit code.
"""

import json
import os
import resource
import signal
import sys

import torch

import mixdq.integrations.diffusers
import mixdq.workflow.api
from mixdq.cli.main import app
from mixdq.workflow import cost


def die_at(count: int) -> None:
    """Have this process killed before the call of fsync with this number."""
    sync, calls = os.fsync, 0

    def counting(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.fsync = counting


def work(job: dict) -> None:
    """Run the command, and leave."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(job["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    if job["die_at_sync"] is not None:
        die_at(job["die_at_sync"])
    if job["file_limit"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"], resource.RLIM_INFINITY))
    sys.argv = ["mixdq", *job["words"]]
    code = 70
    try:
        app()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Serve until standard input ends."""
    torch.set_num_threads(1)
    cost._in_own_process = cost._measure
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            work(json.loads(line))
        reply(child)
        reply(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def reply(number: int) -> None:
    """Write one line that the other side reads at once."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    assert mixdq.integrations.diffusers is not None
    main()
