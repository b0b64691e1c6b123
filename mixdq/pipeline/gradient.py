"""A pipeline through which gradients flow, for as long as a `with` block lasts."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.hooks import CpuOffload
from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from mixdq.errors import ConfigError

WATCHERS = ("safety_checker", "watermark")
"""What looks at finished pictures, or writes into them, and knows no gradients."""


@contextmanager
def differentiable(pipe: DiffusionPipeline, denoiser: nn.Module, *, checkpointing: bool = False) -> Iterator[None]:
    """Let gradients of outputs and pictures reach the layers' inputs, but no parameter ask for one of its own.

    With `checkpointing` denoiser and decoder keep their blocks' inputs alone and compute the rest again on the way
    back: much less memory, for one more forward pass a backward. A decoder that float16 is too narrow for is a float32
    one, and nobody checks or marks the pictures. All is as it was at the end of the block.

    Raises:
        ConfigError: checkpointing is asked for, and the denoiser does not know how; or a model is offloaded.
    """
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    _check_in_place(modules)
    with ExitStack() as stack:
        for parameter in (each for module in modules for each in module.parameters() if each.requires_grad):
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        vae = getattr(pipe, "vae", None)
        for module in (denoiser, vae) if checkpointing else ():
            if isinstance(module, ModelMixin) and module._supports_gradient_checkpointing:
                if not module.is_gradient_checkpointing:
                    module.enable_gradient_checkpointing()
                    stack.callback(module.disable_gradient_checkpointing)
            elif module is denoiser:
                raise ConfigError(
                    f"sensitivity.checkpointing = true: {type(denoiser).__name__} does not know how to; "
                    "set it to false, or sensitivity.method = 'exact'"
                )
        if isinstance(vae, ModelMixin) and vae.dtype == torch.float16 and vae.config.get("force_upcast"):
            stack.enter_context(_widened(vae))
        stack.enter_context(_unwatched(pipe))
        yield


def _check_in_place(modules: list[nn.Module]) -> None:
    """Raise ConfigError where accelerate takes weights away before the backward pass needs them."""
    for module in modules:
        if isinstance(getattr(module, "_hf_hook", None), CpuOffload):
            raise ConfigError(
                f"{type(module).__name__} is offloaded to the CPU between calls, and a backward pass needs all weights "
                "in place: undo it (pipe.remove_all_hooks(), then pipe.to(device)), or set sensitivity.method = 'exact'"
            )


@contextmanager
def _widened(vae: Any) -> Iterator[None]:
    """Hold a decoder in float32. Pipelines do so themselves, but no longer than the way forward takes."""

    def widen(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].float(), *args[1:])

    # Where Apple's GPUs are about, pipelines narrow a decoder that is wider than the latents.
    vae.to = lambda *_, **__: vae
    doors = [module for module in (getattr(vae, "post_quant_conv", None), vae.decoder) if module is not None]
    handles = [door.register_forward_pre_hook(widen) for door in doors]
    try:
        # Part by part, for diffusers warns when the whole is asked.
        for part in vae.children():
            part.to(torch.float32)
        yield
    finally:
        for part in vae.children():
            part.to(torch.float16)
        for handle in handles:
            handle.remove()
        del vae.to


@contextmanager
def _unwatched(pipe: DiffusionPipeline) -> Iterator[None]:
    # Past the pipeline's own way to set a component, which would forget in its config that there was one.
    attributes = vars(pipe)
    watchers = {name: attributes[name] for name in WATCHERS if name in attributes}
    attributes.update(dict.fromkeys(watchers))
    try:
        yield
    finally:
        attributes.update(watchers)
