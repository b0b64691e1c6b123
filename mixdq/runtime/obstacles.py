"""What cannot be in a CUDA graph, in words: of a call's arguments, of a denoiser, of what a call does."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TENSORS = (Tensor, nn.Parameter)
VALUES = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def obstacle_of_call(leaves: Sequence[Any], device_type: str) -> str | None:
    """Return why a call of these arguments, as torch is now, has no graph on such a device; None where it may have."""
    devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor)}
    odd = {type(leaf).__name__ for leaf in leaves if not isinstance(leaf, VALUES) and type(leaf) not in TENSORS}
    if odd:
        return f"graphs know tensors and plain values, and an argument is of type {', '.join(sorted(odd))}"
    if len(devices) != 1 or next(iter(devices)).type != device_type:
        found = ", ".join(sorted(map(str, devices))) or "none"
        return f"the inputs should be on one device of type {device_type}, and are on {found}"
    if torch.is_grad_enabled():
        return "gradients are enabled; call it under torch.no_grad()"
    if torch.is_autocast_enabled(device_type):
        return "autocast is on, which casts weights anew; cast the model instead"
    if _has_any_global_hook():  # type: ignore[no-untyped-call]
        return "there are hooks on all modules, which a graph would not call"
    return None


def obstacle_of_denoiser(denoiser: nn.Module, device: torch.device) -> str | None:
    """Return why no call on `device` can be captured while the denoiser is as it is; None where calls may be.

    Its own hooks are not in its graphs, and no obstacle. Nor are modules inside that are in training mode, as PEFT
    leaves adapters: a graph draws new random numbers every time.
    """
    if denoiser.training:
        return "it is in training mode; call its eval() first"
    for name, module in denoiser.named_modules():
        place = name or "it"
        if name and (module._forward_hooks or module._forward_pre_hooks):
            return f"{place} has hooks, which a graph would not call"
        if hasattr(module, "_hf_hook") or getattr(getattr(module, "_diffusers_hook", None), "hooks", None):
            return f"{place} is offloaded or cached"
        away = {str(one.device) for one in module._parameters.values() if one is not None and one.device != device}
        if away:
            return f"{place} is on {', '.join(sorted(away))}, and the inputs on {device}"
    return None


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operators that wait for the device, and what they move to or from it: `found` names them."""

    _TAGS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, None] = {}
        self._device = device

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {x.device for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = {x.device for x in tree_leaves(result) if isinstance(x, Tensor)}
        moved = (given and not made <= given) or (len(given) > 1 and func._schema.name == "aten::copy_")
        if self._device in given | made and (moved or not self._TAGS.isdisjoint(func.tags)):
            self.found[str(func)] = None
        return result
