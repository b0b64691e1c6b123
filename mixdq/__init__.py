"""MixDQ makes few-step text-to-image models small and fast without spoiling their pictures (arXiv 2405.17873).

The public names are imported on first use, so `import mixdq` costs nothing; importing it also lets diffusers open saved
MixDQ models with a plain `from_pretrained`.
"""

import importlib
from typing import TYPE_CHECKING

from mixdq.integrations.registration import register_when_ready

if TYPE_CHECKING:
    from mixdq.errors import MixDQError
    from mixdq.integrations.diffusers import MixDQConfig
    from mixdq.workflow.api import (
        allocate,
        apply,
        calibrate,
        choose,
        evaluate,
        generate,
        inspect,
        measure,
        quantize,
    )
    from mixdq.workflow.graphs import remove_cuda_graphs, use_cuda_graphs

__all__ = [
    "MixDQConfig",
    "MixDQError",
    "allocate",
    "apply",
    "calibrate",
    "choose",
    "evaluate",
    "generate",
    "inspect",
    "measure",
    "quantize",
    "remove_cuda_graphs",
    "use_cuda_graphs",
]

_PLACES = {
    "MixDQConfig": "mixdq.integrations.diffusers",
    "MixDQError": "mixdq.errors",
    "remove_cuda_graphs": "mixdq.workflow.graphs",
    "use_cuda_graphs": "mixdq.workflow.graphs",
}

register_when_ready()


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES.get(name, "mixdq.workflow.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
