"""How much a denoiser has been made to do, in calls of it: the unit in which searches are compared."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mixdq.types.layers import LayerTable

BACKWARD = 2
"""What a backward pass through a layer counts: gradients to its input and to its weight, each as much as a call."""


class Work:
    """Multiply-accumulates of the layers, divided by those of one call on one picture."""

    def __init__(self, table: LayerTable) -> None:
        self._whole = sum(layer.macs for layer in table)
        self._macs = 0

    @property
    def calls(self) -> float:
        """Calls for one picture, or what comes to as much; a layer that is not run does not count."""
        return self._macs / self._whole

    def add(self, macs: int) -> None:
        """Count some more."""
        self._macs += macs


@contextmanager
def counting(denoiser: nn.Module, table: LayerTable) -> Iterator[Work]:
    """Count what the denoiser's layers do within the block, forward and backward."""
    work = Work(table)
    with ExitStack() as stack:
        for layer in table:
            hook = denoiser.get_submodule(layer.name).register_forward_hook(_counter(work, layer.macs))
            stack.callback(hook.remove)
        yield work


def _counter(work: Work, macs: int) -> Any:
    def count(_: nn.Module, __: Any, output: Tensor) -> None:
        done = macs * len(output)
        work.add(done)
        if output.requires_grad:
            output.register_hook(lambda _: work.add(BACKWARD * done))  # type: ignore[no-untyped-call]

    return count
