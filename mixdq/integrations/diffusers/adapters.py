"""Adapters beside codes: PEFT's layers around quantized ones work, but what reads or changes `weight` itself cannot.

PEFT adds adapters to codes as if they were numbers, in silence where it casts them first. So the denoiser's own methods
refuse to fuse, and refuse adapters that need the weight's norm (DoRA). While PEFT makes an adapter they show it float
layers: it asks for the type of a layer and the axes of its weight, which quantized types and packed codes have not.
An IP-Adapter has layers of its own, but diffusers ends with a cast that quantized models refuse.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn

from mixdq.errors import ConfigError
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.layout import weight_shape_of
from mixdq.runtime.linear import QuantizedLinear

_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def guard_adapters(denoiser: nn.Module) -> None:
    """Give a quantized denoiser methods of its own in the place of those of diffusers' that it has."""
    for name, method in _GUARDED.items():
        if hasattr(type(denoiser), name):
            setattr(denoiser, name, MethodType(method, denoiser))


def release_adapters(denoiser: nn.Module) -> None:
    """Undo `guard_adapters`."""
    for name in _GUARDED:
        vars(denoiser).pop(name, None)


def _fuse_lora(self: Any, *args: Any, **kwargs: Any) -> None:
    raise ConfigError(
        "LoRA cannot be fused into a quantized model: codes have no room for it. Leave it beside them, where it works "
        "as well, or fuse it into the float model and quantize that."
    )


def _add_adapter(self: Any, adapter_config: Any, adapter_name: str = "default") -> None:
    if getattr(adapter_config, "use_dora", False):
        raise _no_dora()
    with _float_layers(self):
        type(self).add_adapter(self, adapter_config, adapter_name=adapter_name)


def _load_lora_adapter(self: Any, *args: Any, **kwargs: Any) -> None:
    before = set(getattr(self, "peft_config", {}))
    with _float_layers(self):
        type(self).load_lora_adapter(self, *args, **kwargs)
    new = [name for name in getattr(self, "peft_config", {}) if name not in before]
    if any(_has_dora(module, new) for module in self.modules()):
        if before:
            self.delete_adapters(new)
        else:
            self.unload_lora()
        raise _no_dora()


def _load_ip_adapter(self: Any, *args: Any, **kwargs: Any) -> None:
    # The cast is to the dtype that the model has, and no quantized layer casts its codes or scales.
    self.is_quantized = False
    try:
        type(self)._load_ip_adapter_weights(self, *args, **kwargs)
    finally:
        self.is_quantized = True


@contextmanager
def _float_layers(model: nn.Module) -> Iterator[None]:
    """Have float layers of the same geometry and no memory in the places of quantized ones, then those again."""
    quantized: dict[nn.Module, QuantizedLayer] = {}
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear | QuantizedConv2d):
            shown = _shown(layer)
            quantized[shown] = layer
            model.set_submodule(name, shown)
    try:
        yield
    finally:
        for name, module in list(model.named_modules()):
            if module in quantized:
                model.set_submodule(name, quantized[module])
        _group_again(model)


def _shown(layer: QuantizedLinear | QuantizedConv2d) -> nn.Linear | nn.Conv2d:
    shown: nn.Linear | nn.Conv2d
    if isinstance(layer, QuantizedConv2d):
        shown = nn.Conv2d(**{each: getattr(layer, each) for each in _GEOMETRY}, bias=False, device="meta")
    else:
        shown = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    # Integers still, so that PEFT refuses to begin an adapter from the weight's values.
    shown.weight = nn.Parameter(layer.weight.new_zeros(()).expand(weight_shape_of(layer)), requires_grad=False)
    return shown


def _group_again(model: nn.Module) -> None:
    """Have offloaded groups made of the layers that are there now."""
    # Diffusers imports this module before it has any hook itself.
    from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading

    _maybe_remove_and_reapply_group_offloading(model)


_GUARDED: dict[str, Callable[..., None]] = {
    "fuse_lora": _fuse_lora,
    "add_adapter": _add_adapter,
    "load_lora_adapter": _load_lora_adapter,
    "_load_ip_adapter_weights": _load_ip_adapter,
}


def _has_dora(module: Any, names: list[str]) -> bool:
    magnitudes = getattr(module, "lora_magnitude_vector", ())
    return isinstance(getattr(module, "base_layer", None), QuantizedLayer) and any(name in magnitudes for name in names)


def _no_dora() -> ConfigError:
    return ConfigError(
        "DoRA scales a layer by the norm of its weight, and a quantized layer has codes in its place. Use plain LoRA, "
        "or fuse it into the float model and quantize that."
    )
