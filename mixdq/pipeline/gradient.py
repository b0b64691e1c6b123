"""A pipeline through which gradients flow, for as long as a `with` block lasts."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from mixdq.errors import ConfigError


@contextmanager
def differentiable(pipe: DiffusionPipeline, denoiser: nn.Module, *, checkpointing: bool = False) -> Iterator[None]:
    """Let gradients of outputs and pictures reach the layers' inputs, but no parameter ask for one of its own.

    With `checkpointing` denoiser and decoder keep their blocks' inputs alone and compute the rest again on the way
    back: much less memory, for one more forward pass a backward. All is as it was at the end of the block.

    Raises:
        ConfigError: checkpointing is asked for, and the denoiser does not know how.
    """
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    asking = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    switched: list[ModelMixin] = []
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        for module in (denoiser, getattr(pipe, "vae", None)) if checkpointing else ():
            if isinstance(module, ModelMixin) and module._supports_gradient_checkpointing:
                if not module.is_gradient_checkpointing:
                    module.enable_gradient_checkpointing()
                    switched.append(module)
            elif module is denoiser:
                raise ConfigError(
                    f"sensitivity.checkpointing = true: {type(denoiser).__name__} does not know how to; "
                    "set it to false, or sensitivity.method = 'exact'"
                )
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
        for module in switched:
            module.disable_gradient_checkpointing()
