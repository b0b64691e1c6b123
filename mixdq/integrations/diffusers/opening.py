"""Opening a saved denoiser: empty quantized layers on the meta device, checked against the files, then filled."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mixdq.errors import ArtifactFormatError, ConfigError, PlanError
from mixdq.integrations.checkpoint import check_checkpoint, stored_shape
from mixdq.integrations.saved_format import SavedModel
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.layout import EXACT_NAMES, LayerLayout, part_shapes, weight_shape_of
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.requests import kernel_requests

SHOWN = 8


class Opening:
    """How the quantizer fills a model that was saved quantized."""

    supports_parallel_loading = True

    def __init__(self, saved: SavedModel, backend: str) -> None:
        self.saved = saved
        self.backend = backend

    def prepare(
        self, model: nn.Module, files: Sequence[str], state: Mapping[str, Tensor], in_float32: Sequence[str]
    ) -> SavedModel:
        """Swap empty quantized layers into a model on meta; return what is saved.

        Raises:
            PlanError: the plan names layers that the model has not; all are listed.
            ArtifactFormatError: the files hold other tensors.
            ConfigError: there are no files of ours.
        """
        if not files:
            raise ConfigError(
                "This MixDQConfig describes a model that is quantized already, and a single file of weights is none. "
                "Say what to do with it: MixDQConfig(weight_bits=8)."
            )
        _swap_in_empty_layers(model, self.saved, self.backend)
        check_checkpoint(model, files, list(self.saved.plan.layers))
        return self.saved

    def owns(self, model: nn.Module, name: str) -> bool:
        """Return whether a tensor is a quantized layer's own, which diffusers must neither cast nor reshape."""
        path, _, kind = name.rpartition(".")
        return isinstance(model.get_submodule(path), QuantizedLayer) and (kind == "weight" or kind in EXACT_NAMES)

    def put(self, model: nn.Module, name: str, tensor: Tensor) -> None:
        """Put one tensor into its layer, its numbers as they are; ArtifactFormatError where it cannot be its own."""
        path, _, kind = name.rpartition(".")
        layer = model.get_submodule(path)
        assert isinstance(layer, QuantizedLayer)
        held = getattr(layer, kind)
        if tuple(tensor.shape) == stored_shape(held):
            tensor = tensor.reshape(held.shape)
        try:
            layer.put(kind, tensor)
        except ValueError as error:
            raise ArtifactFormatError(f"{error}; the file is damaged or not of this plan.") from error


def _swap_in_empty_layers(model: nn.Module, saved: SavedModel, backend: str) -> None:
    """Replace float layers by empty quantized ones; one PlanError for all that cannot be replaced."""
    complaints = []
    for name, layout in saved.layouts().items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            complaints.append(f"{name}: the model has no such layer")
            continue
        if type(module) is not nn.Linear and type(module) is not nn.Conv2d:
            complaints.append(f"{name}: {type(module).__name__} is no layer that is quantized")
            continue
        if layout.bos and not isinstance(module, nn.Linear):
            complaints.append(f"{name}: a BOS row, but it is no Linear")
            continue
        odd = _odd_geometry(module)
        if odd:
            complaints.append(f"{name}: {odd}")
            continue
        try:
            part_shapes(layout, weight_shape_of(module))
            kernel_requests(module, layout, device="cpu", dtype=torch.float32)
        except (TypeError, ValueError) as error:
            complaints.append(str(error) if isinstance(error, ValueError) else f"{name}: {error}")
            continue
        model.set_submodule(name, _empty_layer(module, layout, backend))
    if complaints:
        shown = "; ".join(complaints[:SHOWN])
        raise PlanError(
            f"the saved plan does not fit the saved model, {len(complaints)} disagreements: {shown}",
            disagreements=complaints,
        )


def _odd_geometry(module: nn.Linear | nn.Conv2d) -> str:
    """Return what of a layer's geometry is no whole number, or not two of them; empty where it is as torch means it.

    An architecture's config can say anything, and torch takes some of it.
    """
    counts = {"in_features": 1, "out_features": 1}
    if isinstance(module, nn.Conv2d):
        counts = {"in_channels": 1, "out_channels": 1, "groups": 1, "kernel_size": 2, "stride": 2, "dilation": 2}
        if not isinstance(module.padding, str):
            counts["padding"] = 2
    for name, count in counts.items():
        value = getattr(module, name)
        found = (value,) if count == 1 else value
        if len(found) != count or any(type(one) is not int for one in found):
            return f"{name} = {value!r}, expected {'a whole number' if count == 1 else 'two whole numbers'}"
    return ""


def _empty_layer(module: nn.Linear | nn.Conv2d, layout: LayerLayout, backend: str) -> QuantizedLinear | QuantizedConv2d:
    if isinstance(module, nn.Linear):
        return QuantizedLinear.empty(module, layout, backend=backend)
    return QuantizedConv2d.empty(module, layout, backend=backend)
