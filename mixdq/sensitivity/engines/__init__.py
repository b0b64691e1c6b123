"""Who runs the trials of a sensitivity analysis: engines by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from mixdq.errors import ConfigError
from mixdq.sensitivity.engines.base import Engine
from mixdq.sensitivity.engines.local import run_local
from mixdq.sensitivity.engines.ray import ray_engine
from mixdq.sensitivity.engines.worker import ModelSource

ENGINES: Mapping[str, Callable[[ModelSource | None, str | None], Engine]] = MappingProxyType(
    {"local": lambda source, address: run_local, "ray": ray_engine}
)


def find_engine(name: str, *, source: ModelSource | None = None, address: str | None = None) -> Engine:
    """Return the engine of that name.

    Args:
        name: a name of `ENGINES`.
        source: where other processes read the model; None for a model that is in this one's memory alone.
        address: where the cluster is, for engines that have one.

    Raises:
        ConfigError: there is no such engine, or it cannot work here.
        ClusterError: nothing answers at the address.
    """
    if name not in ENGINES:
        raise ConfigError(f"engine = {name!r}: expected one of {', '.join(sorted(ENGINES))}")
    return ENGINES[name](source, address)
