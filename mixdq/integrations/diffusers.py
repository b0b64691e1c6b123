"""MixDQ as one of diffusers' quantization methods: `save_pretrained` and `from_pretrained` work as for any model.

A saved denoiser is plain safetensors (codes, scales, BOS rows; see `mixdq.runtime.layout`) and a `quantization_config`
in config.json (see `mixdq.integrations.saved_format`). Opening one needs `import mixdq` alone: no calibration, and no
float weights in memory. Quantizing a float model while it loads is not done here.
"""

import logging
from collections.abc import Mapping
from enum import Enum
from typing import Any, Self

import torch
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from mixdq.errors import ArtifactFormatError, ConfigError, PlanError
from mixdq.integrations.checkpoint import check_checkpoint
from mixdq.integrations.saved_format import METHOD, SavedModel, from_json, to_json
from mixdq.runtime.backends.cpu import CpuBackend
from mixdq.runtime.between import remove_cpu_kernels, use_cpu_kernels
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.layout import EXACT_NAMES, LayerLayout, part_shapes, weight_shape_of
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.requests import kernel_requests
from mixdq.runtime.select import AUTO, check_backend
from mixdq.types.layers import LayerTable
from mixdq.types.plan import Activations, BitPlan
from mixdq.types.tensors import CalibrationRecord

log = logging.getLogger(__name__)


class MixDQMethod(str, Enum):  # noqa: UP042  (diffusers' own is of this kind, and reads `.value`)
    """The name of the method, as diffusers wants it."""

    MIXDQ = METHOD


class MixDQConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What diffusers keeps beside a quantized denoiser: the saved model's description, and the backend that runs it."""

    def __init__(self, saved: SavedModel, *, backend: str = AUTO) -> None:
        self.quant_method = MixDQMethod.MIXDQ
        self.saved = saved
        self.backend = check_backend(backend)

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Return the config that `to_dict` wrote; raises ArtifactFormatError where the values cannot be one."""
        saved, backend = from_json(config_dict)
        config = cls(saved, backend=backend)
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return to_json(self.saved, self.backend)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return all of it; diffusers prints this."""
        return self.to_dict()

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Self:
        # Frozen values all through, but for the backend's name.
        return type(self)(self.saved, backend=self.backend)


class MixDQQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Builds the quantized layers on the meta device, checks the files against them, and fills them."""

    use_keep_in_fp32_modules = True
    requires_calibration = False

    def __init__(self, quantization_config: MixDQConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.checkpoint_files: list[str] = []
        if not self.pre_quantized:
            raise ConfigError(
                "A MixDQConfig describes a model that is quantized already. To quantize this one, run "
                "`mixdq quantize MODEL -o OUT`, or mixdq.quantize(...) in Python, and open the result."
            )

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raise ConfigError where a device map offloads to disk, on a path that casts scales."""
        device_map = kwargs.get("device_map")
        if isinstance(device_map, Mapping) and "disk" in device_map.values():
            raise ConfigError("device_map: a MixDQ model cannot be offloaded to disk; use the CPU or a GPU.")

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """Return the dtype of the layers left in floating point; float32 where none was asked for, as in diffusers."""
        return torch.float32 if torch_dtype is None else torch_dtype

    def adjust_target_dtype(self, torch_dtype: torch.dtype) -> torch.dtype:
        """Return the dtype that automatic device maps reckon with."""
        return torch.int8

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """Take note of the files, which are checked once the layers stand."""
        self.checkpoint_files = [str(file) for file in checkpoint_files]
        return loaded_keys

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        config: MixDQConfig = self.quantization_config
        _swap_in_empty_layers(model, config)
        check_checkpoint(model, self.checkpoint_files, list(config.saved.plan.layers))
        model.register_to_config(quantization_config=config)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        if self.quantization_config.backend in (AUTO, CpuBackend.name):
            use_cpu_kernels(model)
        log.info("opened a MixDQ model: plan %s", self.quantization_config.saved.plan.name)

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: Mapping[str, Any], **kwargs: Any
    ) -> bool:
        """Return whether a tensor is a quantized layer's own, which diffusers must neither cast nor reshape."""
        path, _, name = param_name.rpartition(".")
        return isinstance(model.get_submodule(path), QuantizedLayer) and (name == "weight" or name in EXACT_NAMES)

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        target_device: Any,
        state_dict: Mapping[str, Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Put one tensor into its layer as it is on disk; `param_value` is already cast, so it is not looked at."""
        path, _, name = param_name.rpartition(".")
        layer = model.get_submodule(path)
        assert isinstance(layer, QuantizedLayer)
        try:
            layer.put(name, state_dict[param_name].to(target_device))
        except ValueError as error:
            raise ArtifactFormatError(f"{error}; the file is damaged or not of this plan.") from error

    def get_state_dict_and_metadata(
        self, state_dict: Mapping[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the state with biases and float layers in float16 where that loses nothing.

        A float16 checkpoint that was quantized in float32 is thus saved at its own size; opening casts it back.
        """
        return {
            name: tensor if name.rpartition(".")[2] in EXACT_NAMES else _halved_if_exact(tensor)
            for name, tensor in state_dict.items()
        }, {}

    def _dequantize(self, model: Any) -> Any:
        dtype = model.dtype
        remove_cpu_kernels(model)
        for name, module in list(model.named_modules()):
            if isinstance(module, QuantizedLinear | QuantizedConv2d):
                model.set_submodule(name, module.to_float(dtype))
        # Saved from now on, it is an ordinary float model.
        model._internal_dict = type(model.config)({k: v for k, v in model.config.items() if k != "quantization_config"})
        return model

    @property
    def is_serializable(self) -> bool:
        """True: safetensors and JSON."""
        return True

    @property
    def is_trainable(self) -> bool:
        """False: codes have no gradients."""
        return False


def register() -> None:
    """Enter MixDQ in diffusers' tables; again and again, if you like."""
    AUTO_QUANTIZER_MAPPING[METHOD] = MixDQQuantizer
    AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = MixDQConfig


def attach_config(
    denoiser: Any,
    plan: BitPlan,
    table: LayerTable,
    record: CalibrationRecord,
    *,
    backend: str = AUTO,
    symmetric: bool = True,
    activations: Activations = "static",
) -> MixDQConfig:
    """Make a denoiser that `convert` has just quantized saveable, and return its config.

    The arguments are those that `convert` was called with. From now on diffusers knows the denoiser as quantized:
    `save_pretrained` writes it, `.half()` and `.to(dtype)` raise, `.dequantize()` gives a float model.
    """
    layers = [spec for spec in table if isinstance(denoiser.get_submodule(spec.name), QuantizedLayer)]
    saved = SavedModel(
        plan=plan,
        symmetric=symmetric,
        activations=activations,
        input_splits={spec.name: spec.input_splits for spec in layers if spec.input_splits},
        bos_layers=tuple(spec.name for spec in layers if spec.bos),
        calibration=dict(record.origin),
    )
    config = MixDQConfig(saved, backend=backend)
    denoiser.register_to_config(quantization_config=config)
    denoiser.hf_quantizer = MixDQQuantizer(config, pre_quantized=True)
    denoiser.is_quantized = True
    denoiser.quantization_method = MixDQMethod.MIXDQ
    return config


def _swap_in_empty_layers(model: nn.Module, config: MixDQConfig) -> None:
    """Replace float layers by empty quantized ones; one PlanError for all that cannot be replaced."""
    complaints = []
    for name, layout in config.saved.layouts().items():
        parent, _, child = name.rpartition(".")
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
        try:
            part_shapes(layout, weight_shape_of(module))
            kernel_requests(module, layout, device="cpu", dtype=torch.float32)
        except ValueError as error:
            complaints.append(str(error))
            continue
        setattr(model.get_submodule(parent), child, _empty_layer(module, layout, config.backend))
    if complaints:
        shown = "; ".join(complaints[:8])
        raise PlanError(
            f"the saved plan does not fit the saved model, {len(complaints)} disagreements: {shown}",
            disagreements=complaints,
        )


def _empty_layer(module: nn.Linear | nn.Conv2d, layout: LayerLayout, backend: str) -> QuantizedLinear | QuantizedConv2d:
    if isinstance(module, nn.Linear):
        return QuantizedLinear.empty(module, layout, backend=backend)
    return QuantizedConv2d.empty(module, layout, backend=backend)


def _halved_if_exact(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float32:
        return tensor
    half = tensor.to(torch.float16)
    return half if torch.equal(half.to(torch.float32), tensor) else tensor


register()
