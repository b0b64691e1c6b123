"""The quantizer that diffusers calls while it loads, saves and dequantizes a denoiser."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from diffusers.quantizers.base import DiffusersQuantizer
from torch import Tensor, nn

from mixdq.errors import ArtifactFormatError, ConfigError
from mixdq.integrations.checkpoint import stored_shape
from mixdq.integrations.checksums import CHECKSUMS, checksums, note_config
from mixdq.integrations.diffusers.adapters import guard_adapters, release_adapters
from mixdq.integrations.diffusers.config import MixDQConfig, Recipe
from mixdq.integrations.diffusers.on_the_fly import OnTheFly
from mixdq.integrations.diffusers.opening import Opening
from mixdq.integrations.saved_format import SavedModel
from mixdq.runtime.another_text import follow_text, leave_text
from mixdq.runtime.backends.cpu import CpuBackend
from mixdq.runtime.backends.cuda import CudaBackend
from mixdq.runtime.between import remove_cpu_kernels, use_cpu_kernels
from mixdq.runtime.binding import is_offloaded
from mixdq.runtime.blocks import fold_blocks, unfold_blocks
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.heap import HEAP
from mixdq.runtime.layout import EXACT_NAMES, tensor_specs, weight_shape_of
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.select import AUTO

log = logging.getLogger(__name__)


class Filler(Protocol):
    """How a model on meta gets its tensors: `Opening` what was saved quantized, `OnTheFly` what is float."""

    @property
    def supports_parallel_loading(self) -> bool:
        """Whether several files may be read at once."""
        ...

    def prepare(
        self, model: nn.Module, files: Sequence[str], state: Mapping[str, Tensor], in_float32: Sequence[str]
    ) -> SavedModel:
        """Check the files and make ready; return what the model will be."""
        ...

    def owns(self, model: nn.Module, name: str) -> bool:
        """Return whether `put` takes this tensor; diffusers takes the others."""
        ...

    def put(self, model: nn.Module, name: str, tensor: Tensor) -> None:
        """Take one tensor as it is in the file, on the device where it is to be."""
        ...


class MixDQQuantizer(DiffusersQuantizer):  # type: ignore[misc]
    """Opens saved denoisers and quantizes float ones while they load; see `Filler`."""

    use_keep_in_fp32_modules = True
    requires_calibration = False
    quantization_config: MixDQConfig

    def __init__(self, quantization_config: MixDQConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        source, backend = quantization_config.source, quantization_config.backend
        self.filler: Filler = OnTheFly(source, backend) if isinstance(source, Recipe) else Opening(source, backend)
        self.checkpoint_files: list[str] = []
        if not self.pre_quantized and not isinstance(source, Recipe):
            raise ConfigError(
                "This MixDQConfig describes a model that is quantized already, and this one is not. Say what to do "
                "with it, MixDQConfig(weight_bits=8), or run `mixdq quantize MODEL -o OUT` and open OUT/model."
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
        """Return the dtype that automatic device maps reckon floats with: those of saved models stay floats."""
        return torch.int8 if isinstance(self.filler, OnTheFly) else torch_dtype

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """Take note of the files, which are checked once the model stands; return the names without checksums."""
        if self.pre_quantized and isinstance(self.filler, OnTheFly):
            raise ArtifactFormatError(
                "config.json: its quantization_config has no plan, so it describes no quantized model; save it again"
            )
        self.checkpoint_files = [str(file) for file in checkpoint_files]
        return [key for key in loaded_keys if key not in CHECKSUMS]

    @property
    def supports_parallel_loading(self) -> bool:
        """Whether diffusers may read several files at once."""
        return self.filler.supports_parallel_loading

    def _process_model_before_weight_loading(
        self,
        model: Any,
        state_dict: Mapping[str, Tensor] | None = None,
        keep_in_fp32_modules: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        saved = self.filler.prepare(model, self.checkpoint_files, state_dict or {}, keep_in_fp32_modules)
        self.quantization_config = MixDQConfig.describing(saved, backend=self.quantization_config.backend)
        model.register_to_config(quantization_config=self.quantization_config)
        note_config(model)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        _check_filled(model, self.quantization_config.saved)
        HEAP.give_back()
        if self.quantization_config.backend in (AUTO, CpuBackend.name):
            use_cpu_kernels(model)
        if self.quantization_config.backend in (AUTO, CudaBackend.name):
            fold_blocks(model)
        follow_text(model)
        guard_adapters(model)
        log.info("MixDQ model: plan %s", self.quantization_config.saved.plan.name)

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Tensor, param_name: str, state_dict: Mapping[str, Any], **kwargs: Any
    ) -> bool:
        """Return whether diffusers must leave a tensor to `create_quantized_param`."""
        return self.filler.owns(model, param_name)

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
        self.filler.put(model, param_name, state_dict[param_name].to(target_device))

    def get_state_dict_and_metadata(
        self, state_dict: Mapping[str, Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the state with biases and float layers in float16 where that loses nothing, and its checksums.

        A float16 checkpoint that was quantized in float32 is thus saved at its own size; opening casts it back. Codes
        of 8 bits are saved flat: of the weight's own shape, a loader that knows nothing of them took them for weights.

        Raises:
            ConfigError: the model carries adapters, or is to be pickled.
        """
        if not safe_serialization:
            raise ConfigError("A MixDQ model is saved as safetensors, never pickled: leave safe_serialization alone.")
        if any(".base_layer." in name or ".to_k_ip." in name for name in state_dict):
            raise ConfigError(
                "The model carries adapters, which its files have no place for. Save them apart "
                "(pipe.save_lora_weights), unload them (pipe.unload_lora_weights, pipe.unload_ip_adapter), and save "
                "the model then."
            )
        saved = {
            name: tensor
            if name.rpartition(".")[2] in EXACT_NAMES
            else _halved_if_exact(tensor).reshape(stored_shape(tensor))
            for name, tensor in state_dict.items()
        }
        return {**saved, **checksums(saved, state_dict)}, {}

    def _dequantize(self, model: Any) -> Any:
        dtype = model.dtype
        release_adapters(model)
        leave_text(model)
        unfold_blocks(model)
        remove_cpu_kernels(model)
        for name, module in list(model.named_modules()):
            if isinstance(module, QuantizedLinear | QuantizedConv2d):
                model.set_submodule(name, module.to_float(dtype))
        # Saved from now on, it is an ordinary float model.
        ours = ("quantization_config", "_pre_quantization_dtype")
        model._internal_dict = type(model.config)({k: v for k, v in model.config.items() if k not in ours})
        return model

    @property
    def is_serializable(self) -> bool:
        """True: safetensors and JSON."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: codes have no gradients, but what lies before and beside them has."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: `torch.compile` sees each quantized layer as one operator."""
        return True


def _check_filled(model: nn.Module, saved: SavedModel) -> None:
    """Return if every layer of the plan holds its tensors; some options of diffusers' loader pass the quantizer by."""
    for name, layout in saved.layouts().items():
        layer = model.get_submodule(name)
        if not isinstance(layer, QuantizedLinear | QuantizedConv2d) or any(
            (tensor := getattr(layer, kind)).dtype != dtype or (tensor.is_meta and not is_offloaded(layer))
            for kind, (_, dtype) in tensor_specs(layout, weight_shape_of(layer)).items()
        ):
            raise ArtifactFormatError(
                f"{name}: diffusers loaded it past MixDQ; leave offload_state_dict and offload_folder alone"
            )


def _halved_if_exact(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float32:
        return tensor
    half = tensor.to(torch.float16)
    return half if torch.equal(half.to(torch.float32), tensor) else tensor
