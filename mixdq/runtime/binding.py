"""From a layer's tensors to kernels that are ready to run, and when they no longer are.

Where each kernel of a layer holds the weight in an order of its own, the layer keeps a stand-in of it: same shape,
dtype and device, no memory. Which layer binds when: `mixdq.runtime.layer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixdq.errors import NoBackendError
from mixdq.runtime.kernel import HoldingKernel, Kernel
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.requests import kernel_requests
from mixdq.runtime.select import select
from mixdq.types.tensors import QParams, QTensor


@dataclass(frozen=True)
class Bound:
    """A kernel, and all that it was bound for; a layer that differs in any of it needs a new one.

    `parts` are the kernels inside it, one for each input part; `weight` is the layer's parameter from then on.
    """

    kernel: Kernel
    parts: tuple[Kernel, ...]
    weight: Tensor
    device: torch.device
    dtype: torch.dtype
    geometry: object

    def fits(self, weight: Tensor, x: Tensor, geometry: object) -> bool:
        """Return whether the kernel may still be used."""
        return self.weight is weight and self.device == x.device and self.dtype == x.dtype and self.geometry == geometry

    def codes(self) -> Tensor | None:
        """Return the codes in the portable layout if the kernels hold all of them; None where the layer does."""
        held = [part.portable_codes() for part in self.parts if isinstance(part, HoldingKernel)]
        if len(held) < len(self.parts):
            return None
        return held[0] if len(held) == 1 else torch.cat(held, dim=1)


def bind_parts(
    module: nn.Linear | nn.Conv2d,
    layout: LayerLayout,
    parts: Sequence[QTensor],
    activation: Sequence[QParams] | None,
    *,
    backend: str,
    x: Tensor,
) -> tuple[Kernel, ...]:
    """Return a kernel for each input part of a layer, for inputs such as `x`; the bias goes with the first.

    Raises:
        NoBackendError: weight and input are on two devices, or nobody runs the layer there.
    """
    device = parts[0].codes.device
    if device != x.device:
        raise NoBackendError(
            f"No backend can run {layout.name}: its weight is on {device}, its input on {x.device}. "
            "Move both to one device.",
            refusals={},
        )
    requests = kernel_requests(module, layout, device=device.type, dtype=x.dtype)
    kernels = []
    # A request names no card: backends are asked about the current one.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        for i, (request, part) in enumerate(zip(requests, parts, strict=True)):
            chosen, _ = select(request, backend)
            bias = module.bias if i == 0 else None
            kernels.append(chosen.bind(request, part, bias, None if activation is None else activation[i]))
    return tuple(kernels)


def stand_in(weight: Tensor) -> nn.Parameter:
    """Return a parameter of the same shape, dtype and device that takes one element of memory."""
    return nn.Parameter(weight.new_zeros(()).expand(weight.shape), requires_grad=False)


def is_offloaded(module: nn.Module) -> bool:
    """Return whether accelerate brings this module's tensors for each call and takes them away after it."""
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(each, "offload", False) for each in getattr(hook, "hooks", (hook,)))
