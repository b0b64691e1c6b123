"""The engine "ray": tasks on several processes, GPUs or machines, by Ray.

A worker is a Ray actor that holds the model (see `worker`). One that dies is replaced and its task dealt again. Of what
has been found, a driver that is killed loses at most `AHEAD` tasks a worker.
"""

import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from mixdq.errors import ClusterError, ConfigError, MixDQError
from mixdq.sensitivity.desk import Desk
from mixdq.sensitivity.engines.base import Engine, Team
from mixdq.sensitivity.engines.dealing import Deal
from mixdq.sensitivity.engines.worker import ModelSource, Recipe, Worker, code

log = logging.getLogger(__name__)

AHEAD = 4
"""Tasks a worker that may be dealt beyond the first one whose result is missing."""
LOSSES = 3
"""How many workers may be lost for each there is before something else must have gone well."""
SECONDS_TO_ANSWER = 5.0
SECONDS_TO_START = 60.0
"""After so long without a worker the log says what is waited for."""

A = TypeVar("A")
T = TypeVar("T")


def ray_engine(source: ModelSource | None, address: str | None) -> Engine:
    """Return the engine for the cluster at `address` ("host:port" or "auto"), or for one of its own on this machine.

    Raises:
        ConfigError: Ray is not installed, the address is none, or the model is in memory alone.
        ClusterError: nothing answers at the address.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("engine = 'ray': Ray is not installed. `pip install 'mixdq[ray]'` does it.")
    if source is None:
        raise ConfigError(
            "engine = 'ray': its workers read the model from a folder or the hub, and this one is in memory alone. "
            "Save it with save_pretrained() and name the folder, or say engine = 'local'."
        )
    if address not in (None, "auto"):
        _reach(str(address))
    return partial(run_ray, source, address)


@contextmanager
def run_ray(source: ModelSource, address: str | None, desk: Desk) -> Iterator[Team]:
    """Yield a team of workers, each of which reads the model from `source`; they come as there is work for them.

    A worker has as many threads as torch has here, for the results depend on that.

    Raises:
        ClusterError: there is no room for a worker, a worker is not fit for the work, or too many die.
    """
    gpu = source.device.startswith("cuda")
    # Ray shows each worker its own GPU alone.
    recipe = Recipe.of(desk, replace(source, device="cuda") if gpu else source)
    need = {"CPU": 1, "GPU": 1} if gpu else {"CPU": recipe.threads}
    with _connected(address) as ray:
        room = _room(ray, need)
        if not any(room):
            raise ClusterError(
                f"no machine of the cluster has what one worker needs: {_listed(need)}. "
                "OMP_NUM_THREADS sets the CPUs of a worker, and of the local engine."
            )
        log.info("room for %d workers on %d machines, each with %s", sum(room), sum(map(bool, room)), _listed(need))
        actor = ray.remote(Worker).options(num_cpus=need["CPU"], num_gpus=need.get("GPU", 0))
        yield _Crew(ray, actor, recipe, sum(room))


class _Crew:
    """Workers: each starting, at one task, or idle. One that is lost is replaced."""

    def __init__(self, ray: Any, actor: Any, recipe: Recipe, room: int) -> None:
        self._ray, self._actor, self._recipe = ray, actor, ray.put(recipe)
        self.workers = room
        self._count = self._lost = self._round = 0
        self._tasks: dict[Any, tuple[Any, tuple[int, int] | None]] = {}
        self._idle: list[Any] = []

    def map(self, do: Callable[[Desk, A], T], tasks: Sequence[A]) -> Iterator[T]:
        """Yield the results in order; tasks of an earlier round that a slow worker is still at are let go."""
        self._round += 1
        for _ in range(self._count, min(self.workers, len(tasks))):
            self._count += 1
            self._hire()
        deal = Deal[T | MixDQError](len(tasks), AHEAD * self._count)
        while not deal.finished:
            while self._idle and (piece := deal.deal()) is not None:
                worker = self._idle.pop()
                self._tasks[worker.do.remote(do, tasks[piece])] = (worker, (self._round, piece))
            ended, result = self._ended()
            if ended is not None and ended[0] == self._round:
                if result is None:
                    deal.lose(ended[1])
                else:
                    deal.finish(ended[1], result)
            for known in deal.take():
                if isinstance(known, MixDQError):
                    raise known
                yield known

    def _ended(self) -> tuple[tuple[int, int] | None, Any]:
        """Wait until a worker is ready, has a result, or is lost; return its piece (None at its start) and the result.

        The result of a lost worker is None.
        """
        task = self._first()
        worker, piece = self._tasks.pop(task)
        errors = self._ray.exceptions
        try:
            result = self._ray.get(task)
        except errors.RayTaskError as error:
            if not isinstance(error.cause, MixDQError):
                raise ClusterError(f"a worker failed: {error.cause!r}. What has been measured is kept.") from error
            if piece is None:
                raise error.cause from None
            result = error.cause
        except errors.RayError as error:
            self._replace(worker, str(error).strip() or repr(error))
            return piece, None
        self._idle.append(worker)
        if piece is not None:
            self._lost = 0
        return piece, result

    def _hire(self) -> None:
        worker = self._actor.remote()
        # Where the check fails, its error comes out of `open`, which is not run then.
        self._tasks[worker.open.remote(self._recipe, worker.check.remote(code()))] = (worker, None)

    def _replace(self, worker: Any, why: str) -> None:
        self._ray.kill(worker)
        self._lost += 1
        log.debug("%s", why)
        if self._lost > LOSSES * self._count:
            raise ClusterError(
                f"{self._lost} workers ended without a result, one after the other; the last: {why.splitlines()[0]} "
                "What has been measured is kept. Where memory is short, give fewer processors to the cluster."
            )
        log.warning("a worker was lost; another takes its place")
        self._hire()

    def _first(self) -> Any:
        while True:
            ready, _ = self._ray.wait(list(self._tasks), timeout=SECONDS_TO_START)
            if ready:
                return ready[0]
            if all(piece is None for _, piece in self._tasks.values()):
                log.warning("still no worker: the model is being read, or the cluster has other work")


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Yield Ray, connected to the cluster at `address`, or to one that lasts as long as this."""
    # Unless told otherwise Ray reports to its makers how it is used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.exceptions

    if ray.is_initialized():
        raise ConfigError(
            "this process is connected to Ray already, and an analysis makes and ends a connection of its own: "
            "call ray.shutdown() before"
        )
    own: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    try:
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            said = str(error).strip() or repr(error)
            if address is None:
                raise ClusterError(f"Ray cannot start a cluster on this machine: {said}") from error
            raise ClusterError(
                f"address = {address!r}: no Ray cluster answers there: {said}. Run `ray start --head` on one machine "
                "and this command on a machine of the cluster. One with a token, as Ray makes them, asks for "
                "RAY_AUTH_MODE=token and for the file ~/.ray/auth_token on every machine."
            ) from error
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Return if something listens at the address: Ray itself takes minutes to say that nothing does."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ConfigError(
            f"address = {address!r}: expected host:port, as `ray start --head` prints it, or 'auto' for the cluster "
            "that runs on this machine"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"address = {address!r}: nothing answers there ({error}). `ray status --address {address}` on a machine of "
            "the cluster says whether it runs; without an address a cluster is started on this machine."
        ) from error


def _room(ray: Any, need: Mapping[str, int]) -> list[int]:
    """Return how many workers each machine of the cluster can hold."""
    return [
        int(min(node["Resources"].get(kind, 0) // count for kind, count in need.items()))
        for node in ray.nodes()
        if node["Alive"]
    ]


def _listed(need: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in need.items())
