"""Denoiser calls that begin where a layer does: blocks that were done before it give what they gave when recorded.

What a layer does cannot reach a block that ended before the layer began. So a call with one layer changed comes out the
same, bit for bit, with such blocks' recorded outputs in their place, for the work of the blocks from there on.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mixdq.pipeline.trace import DenoiserCall, replay


@dataclass(frozen=True)
class _Done:
    """A block that has been run once: when it ended, what it gave, and the tensors it read and gave, with versions."""

    ended: int
    output: Any
    seen: tuple[tuple[Tensor, int], ...]


class Prefix:
    """What the blocks of a denoiser gave in one call, and when each layer began."""

    def __init__(self, done: dict[str, _Done], began: dict[str, int]) -> None:
        self._done, self._began = done, began

    def before(self, layer: str) -> dict[str, Any]:
        """Return block -> output of the blocks that ended before the layer was first called; none if it never was."""
        began = self._began.get(layer, 0)
        return {name: done.output for name, done in self._done.items() if done.ended < began}


def record_prefix(denoiser: nn.Module, call: DenoiserCall, layers: Iterable[str], *, limit: int) -> Prefix:
    """Return what replaying `call` shows; outputs take at most `limit` bytes, on the denoiser's device.

    Blocks are the denoiser's children, and those of its lists, that hold two layers or more. What does not fit in the
    memory, ran twice, or wrote into a tensor that others see, is not recorded and so runs every time.
    """
    clock = itertools.count(1)
    began: dict[str, int] = {}
    done: dict[str, _Done] = {}
    runs: dict[str, int] = {}
    held: dict[int, int] = {}
    reads: dict[str, tuple[tuple[Tensor, int], ...]] = {}

    def starting(name: str) -> Callable[..., None]:
        def note(*_: object) -> None:
            began.setdefault(name, next(clock))

        return note

    def reading(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: Any, kwargs: Any) -> None:
            reads[name] = _versions((args, kwargs))

        return note

    def ending(name: str) -> Callable[..., None]:
        def note(_: nn.Module, __: Any, ___: Any, output: Any) -> None:
            runs[name] = runs.get(name, 0) + 1
            read, given = reads.pop(name), _versions(output)
            new = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor, _ in given}
            if given and sum((held | new).values()) <= limit:
                held.update(new)
                done[name] = _Done(next(clock), output, read + given)

        return note

    with ExitStack() as stack:
        for name, module in _blocks(denoiser).items():
            stack.callback(module.register_forward_pre_hook(reading(name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(ending(name), with_kwargs=True).remove)
        for name in layers:
            stack.callback(denoiser.get_submodule(name).register_forward_pre_hook(starting(name)).remove)
        replay(denoiser, call)
    return Prefix(
        {
            name: _Done(one.ended, one.output, ())
            for name, one in done.items()
            if runs[name] == 1 and all(tensor._version == version for tensor, version in one.seen)
        },
        began,
    )


@contextmanager
def resumed(denoiser: nn.Module, prefix: Prefix, layer: str) -> Iterator[None]:
    """Let the denoiser's next call, which must be the recorded one but for `layer`, begin about where that layer does.

    Later calls in the block are whole ones. The denoiser is as it was at the end.
    """
    with ExitStack() as stack:
        for name, output in prefix.before(layer).items():
            _replace_forward(stack, denoiser.get_submodule(name), output)
        stack.callback(denoiser.register_forward_hook(lambda *_: stack.close()).remove)
        yield


def _replace_forward(stack: ExitStack, module: nn.Module, output: Any) -> None:
    own = vars(module).get("forward")

    def restore() -> None:
        if own is None:
            vars(module).pop("forward", None)
        else:
            vars(module)["forward"] = own

    stack.callback(restore)
    vars(module)["forward"] = lambda *_, **__: output


def _blocks(denoiser: nn.Module) -> dict[str, nn.Module]:
    lists = [(name, module) for name, module in denoiser.named_modules() if isinstance(module, nn.ModuleList)]
    children = {
        f"{name}.{key}" if name else key: child
        for name, parent in [("", denoiser), *lists]
        for key, child in parent.named_children()
        if not isinstance(child, nn.ModuleList)
    }
    return {name: child for name, child in children.items() if _holds_layers(child)}


def _holds_layers(module: nn.Module) -> bool:
    layers = (part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d))
    return len(list(itertools.islice(layers, 2))) == 2


def _versions(value: Any) -> tuple[tuple[Tensor, int], ...]:
    """Return the tensors in nested tuples, lists and dicts, each with the number of times it has been written to."""
    return tuple((tensor, tensor._version) for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
