"""What the families with a `UNet2DConditionModel` share: groups, BOS layers, skip joins (arXiv 2405.17873, method)."""

from collections.abc import Iterator

from diffusers import DiffusionPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from mixdq.types.layers import Group


class UNetFamily:
    """The part of `ModelFamily` that depends on the denoiser alone; families add how to match and to encode."""

    denoiser_name = "unet"

    def denoiser(self, pipe: DiffusionPipeline) -> nn.Module:
        """Return the module of `pipe` that is quantized."""
        unet = pipe.components[self.denoiser_name]
        assert isinstance(unet, nn.Module)
        return unet

    def group(self, layer_name: str) -> Group:
        """Return "content" for cross-attention and feed-forward layers, "quality" for every other."""
        return "content" if ".attn2." in layer_name or ".ff." in layer_name else "quality"

    def is_bos(self, layer_name: str) -> bool:
        """Return whether the layer reads the text embedding, as the keys and values of cross-attention do."""
        return layer_name.endswith((".attn2.to_k", ".attn2.to_v"))

    def input_splits(self, denoiser: nn.Module) -> dict[str, tuple[int, ...]]:
        """Return layer -> (hidden, skip) channels for every shortcut of an up block, which reads their concatenation.

        The skips are counted in the order the UNet pushes them: `conv_in`, then each residual layer and downsampler.
        """
        skips = list(_skip_channels(denoiser))
        splits: dict[str, tuple[int, ...]] = {}
        for name, resnet in _resnets(denoiser, "up_blocks"):
            skip = skips.pop()
            shortcut = getattr(resnet, "conv_shortcut", None)
            if isinstance(shortcut, nn.Conv2d):
                splits[f"{name}.conv_shortcut"] = (shortcut.in_channels - skip, skip)
        return splits


def has_unet(pipe: DiffusionPipeline) -> bool:
    """Return whether the denoiser of `pipe` is diffusers' conditional UNet."""
    return isinstance(pipe.components.get("unet"), UNet2DConditionModel)


def guided(pipe: DiffusionPipeline, guidance_scale: float) -> bool:
    """Return whether the pipeline runs the denoiser on a negative prompt too, by its own rule."""
    return guidance_scale > 1.0 and pipe.components["unet"].config.time_cond_proj_dim is None


def _skip_channels(denoiser: nn.Module) -> Iterator[int]:
    """Yield the channels of every tensor that the down path keeps for the up path, in order."""
    yield _out_channels(denoiser.get_submodule("conv_in"))
    for block in _children(denoiser, "down_blocks"):
        for resnet in _children(block, "resnets"):
            yield _out_channels(resnet)
        for downsampler in _children(block, "downsamplers"):
            yield _out_channels(downsampler)


def _resnets(denoiser: nn.Module, blocks: str) -> Iterator[tuple[str, nn.Module]]:
    for i, block in enumerate(_children(denoiser, blocks)):
        for j, resnet in enumerate(_children(block, "resnets")):
            yield f"{blocks}.{i}.resnets.{j}", resnet


def _children(module: nn.Module, name: str) -> list[nn.Module]:
    children = getattr(module, name, None)
    return list(children) if isinstance(children, nn.ModuleList) else []


def _out_channels(module: nn.Module) -> int:
    channels = module.out_channels
    assert isinstance(channels, int)
    return channels
