"""Entering diffusers' tables at the right moment, whichever of mixdq and diffusers is imported first."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_TABLES = "diffusers.quantizers.auto"


def register_when_ready() -> None:
    """Make diffusers open saved MixDQ models: now if its quantizer tables are loaded, else right after they are.

    Imports neither torch nor diffusers by itself. Calling it again changes nothing.
    """
    if _TABLES in sys.modules:
        _register()
    elif not any(isinstance(finder, _TablesFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TablesFinder())


def _register() -> None:
    module = importlib.import_module("mixdq.integrations.diffusers")
    # Absent where that module is itself just importing diffusers; it then enters itself at its end.
    register = getattr(module, "register", None)
    if register is not None:
        register()


class _TablesFinder(MetaPathFinder):
    """Finds diffusers' tables as ever, and registers once they are executed; every other import passes by."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TABLES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Whoever looks at the module later (inspect, pickle) finds it as diffusers made it.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _TablesFinder)]
        _register()
