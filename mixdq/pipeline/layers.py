"""The layers of a denoiser, found by walking one call of it. What each is, its family says."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixdq.errors import UnsupportedModelError
from mixdq.pipeline.family import ModelFamily
from mixdq.pipeline.generate import GenerationSpec, sample
from mixdq.types.layers import LayerSpec, LayerTable

log = logging.getLogger(__name__)


def list_layers(pipe: DiffusionPipeline, family: ModelFamily, spec: GenerationSpec, *, model: str) -> LayerTable:
    """Return every Linear and Conv2d that the denoiser runs for a picture of the size in `spec`, in module order.

    `model` is what the user calls it. The digest is over the denoiser's weights.

    Raises:
        UnsupportedModelError: the denoiser carries unmerged LoRA layers, integer weights or weights that are offloaded,
            or joins its skips in another way than its family says.
    """
    denoiser = family.denoiser(pipe)
    _check_present(denoiser)

    def one_picture() -> None:
        # One step without guidance is one denoiser call on one picture, whatever the settings of a run.
        sample(pipe, replace(spec, steps=1, guidance_scale=0.0), 0, 1, "latent", prompt=[""])

    layers = layer_specs(denoiser, family, one_picture)
    log.info("%s: family %s, %d layers", model, family.name, len(layers))
    return LayerTable(model=model, family=family.name, digest=weights_digest(denoiser), layers=layers)


def layer_specs(denoiser: nn.Module, family: ModelFamily, call: Callable[[], object]) -> tuple[LayerSpec, ...]:
    """Return what `call`, which runs the denoiser once on one picture, shows of every layer; on any device, meta too.

    Raises:
        UnsupportedModelError: unmerged LoRA layers, integer weights, or skips joined in another way than `family` says.
    """
    modules = dict(quantizable_layers(denoiser))
    traced = _walk(modules, call)
    splits = _checked_splits(family.input_splits(denoiser), traced)
    idle = [name for name in modules if name not in traced]
    if idle:
        log.warning("%d layers do not run and are left alone: %s", len(idle), ", ".join(idle))
    return tuple(
        LayerSpec(
            name=name,
            op="linear" if isinstance(modules[name], nn.Linear) else "conv2d",
            group=family.group(name),
            weight_shape=tuple(modules[name].weight.shape),
            input_numel=traced[name].input_numel,
            macs=traced[name].macs,
            bos=family.is_bos(name),
            input_splits=splits.get(name, ()),
        )
        for name in modules
        if name in traced
    )


def quantizable_layers(denoiser: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Yield (name, module) for every Linear and Conv2d, in module order.

    Raises:
        UnsupportedModelError: a layer is an unmerged LoRA or of an IP-Adapter, or holds integers.
    """
    for name, module in denoiser.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if ".lora_" in name or ".base_layer" in name:
            raise UnsupportedModelError(
                f"{name}: the denoiser carries LoRA layers. "
                "Merge them first: pipe.fuse_lora(), then pipe.unload_lora_weights()"
            )
        if ".to_k_ip." in name or "image_projection" in name:
            raise UnsupportedModelError(
                f"{name}: the denoiser carries an IP-Adapter. Load it after quantizing, it works then too: "
                "pipe.unload_ip_adapter() now"
            )
        if not module.weight.is_floating_point():
            raise UnsupportedModelError(
                f"{name}: its weight is {module.weight.dtype}, so this model is quantized already; "
                "start from the one in floating point"
            )
        yield name, module


def _check_present(denoiser: nn.Module) -> None:
    for name, module in quantizable_layers(denoiser):
        if module.weight.is_meta:
            raise UnsupportedModelError(
                f"{name}: its weight is not there, for the model is offloaded layer by layer. "
                "Undo that first: pipe.remove_all_hooks(), or load it without offloading"
            )


def weights_digest(denoiser: nn.Module) -> str:
    """Return the SHA-256 of all weights: names, types, shapes and bytes, in module order."""
    digest = hashlib.sha256()
    for name, tensor in denoiser.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


@contextmanager
def watched(modules: Mapping[str, nn.Module], note: Callable[[str, nn.Module, Tensor, Tensor], None]) -> Iterator[None]:
    """Call `note(name, module, input, output)` whenever one of `modules` has run; take every hook off at the end."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            note(name, module, args[0] if args else kwargs["input"], output)

        return hook

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(hook_of(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class _Traced:
    """What one call showed of a layer: `joined` are the channels of the tensors its input was concatenated from."""

    input_numel: int
    macs: int
    joined: tuple[int, ...]


def _walk(modules: Mapping[str, nn.Linear | nn.Conv2d], call: Callable[[], object]) -> dict[str, _Traced]:
    joins = _Joins()
    traced: dict[str, _Traced] = {}

    def note(name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        # Every output element sums over one output channel's weights.
        macs = y.numel() * weight[0].numel()
        before = traced.get(name, _Traced(input_numel=0, macs=0, joined=()))
        axis = 1 if isinstance(module, nn.Conv2d) else x.dim() - 1
        traced[name] = _Traced(
            input_numel=before.input_numel + x.numel(), macs=before.macs + macs, joined=joins.channels(x, axis)
        )

    with watched(modules, note), joins:
        call()
    return traced


class _Joins(TorchFunctionMode):
    """Remembers which tensors are concatenations, along which axis, and of how many channels each."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[Tensor, int, tuple[int, ...]]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is Tensor.contiguous and id(args[0]) in self._made:
            self._made[id(result)] = (result, *self._made[id(args[0])][1:])
        if func is torch.cat:
            parts = args[0] if args else kwargs["tensors"]
            axis = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % result.dim()
            # The tensor is kept, so that no other can take its id.
            self._made[id(result)] = (result, axis, tuple(part.shape[axis] for part in parts))
        return result

    def channels(self, x: Tensor, axis: int) -> tuple[int, ...]:
        """Return the channels of each part of `x` along `axis`; empty if it is no concatenation along it."""
        _, joined, parts = self._made.get(id(x), (x, axis, ()))
        return parts if joined == axis else ()


def _checked_splits(splits: dict[str, tuple[int, ...]], traced: Mapping[str, _Traced]) -> dict[str, tuple[int, ...]]:
    for name, parts in splits.items():
        if name in traced and traced[name].joined != parts:
            raise UnsupportedModelError(
                f"{name}: its input should be joined from {parts} channels, but the model joins "
                f"{traced[name].joined or 'nothing'}; this variant of the architecture is not known"
            )
    return splits
