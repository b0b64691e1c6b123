"""Text of another encoder than the calibrated one lies beyond calibrated ranges: inputs are then scaled at run time.

Another clip skip or an adapted text encoder shows in the first token, which is the same for all prompts of one encoder.
What its values become goes far beyond cross-attention, so all static layers of a denoiser change together, before the
first of them runs; they change back with the calibrated encoder's next text. Kernels are bound anew at every change.
Code that is compiled as a whole cannot look, and its layers refuse such texts until a call that is not has looked; nor
can a CUDA graph while it is captured. To look is to wait for the device: on a GPU a text that several calls in turn are
given is looked at once, unless it is written to in between (of inference tensors nobody knows).
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from mixdq.quant.bos import MISFIT_LIMIT, bos_projection
from mixdq.runtime.layer import QuantizedLayer

TEXT, PLACE = "encoder_hidden_states", 2
"""How diffusers' UNets are given the text embedding [batch, tokens, width]: the name, or the argument's place."""


class _Seen:
    """The text that was looked at last. Without a `__dict__`, for no graph depends on it (`mixdq.runtime.snapshot`)."""

    __slots__ = ("text", "version")

    def __init__(self) -> None:
        self.text: weakref.ref[Tensor] | None = None
        self.version = 0

    def note(self, text: Tensor) -> None:
        """Take another text for the last one."""
        self.text = None
        if not text.is_inference():
            self.text, self.version = weakref.ref(text), text._version


class TextFollower:
    """The hook before a denoiser's call, which tells `layers` whether its first tokens are multiples of `state`."""

    def __init__(self, layers: list[QuantizedLayer], state: Tensor) -> None:
        self.layers, self.state = layers, state
        self._seen = _Seen()
        self._scale_at_run_time(False)

    def __call__(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the text of a call."""
        text = kwargs.get(TEXT, args[PLACE] if len(args) > PLACE else None)
        if torch.compiler.is_compiling() or text is None or text.shape[-1] != self.state.numel():
            return
        # What a CPU has may be changed by NumPy, which nothing notes; there is nothing to wait for, either.
        if text.is_cuda and (torch.cuda.is_current_stream_capturing() or self.has_seen(text)):
            return
        # Kept there, for moving waits too.
        with torch.inference_mode(False):
            state = self.state.to(text.device)
        _, misfit = bos_projection(text[..., 0, :], state)
        self._scale_at_run_time(not bool((misfit <= MISFIT_LIMIT).all()))
        self.state = state
        self._seen.note(text)

    def has_seen(self, text: Tensor) -> bool:
        """Return whether a text is the very one of the last call, and was not written to since."""
        seen = self._seen
        return seen.text is not None and seen.text() is text and seen.version == text._version

    def __getstate__(self) -> dict[str, Any]:
        # What refers to a tensor cannot be saved; who loads this may have no such device.
        return {**vars(self), "state": self.state.cpu(), "_seen": _Seen()}

    def _scale_at_run_time(self, on: bool) -> None:
        for layer in self.layers:
            layer.scale_at_run_time(on)


def follow_text(denoiser: nn.Module) -> None:
    """Have a quantized denoiser change as the text of its calls does; one without BOS rows or static layers stays."""
    leave_text(denoiser)
    layers = [module for module in denoiser.modules() if isinstance(module, QuantizedLayer)]
    rows = [row for layer in layers if (row := layer.bos_row()) is not None]
    if rows and any(layer.is_static for layer in layers):
        follower = TextFollower(layers, rows[0].input.detach().to("cpu", copy=True))
        denoiser.register_forward_pre_hook(follower, with_kwargs=True)


def leave_text(denoiser: nn.Module) -> None:
    """Undo `follow_text`."""
    for key, hook in list(denoiser._forward_pre_hooks.items()):
        if isinstance(hook, TextFollower):
            del denoiser._forward_pre_hooks[key], denoiser._forward_pre_hooks_with_kwargs[key]
