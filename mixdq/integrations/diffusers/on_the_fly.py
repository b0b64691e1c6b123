"""Quantizing a float model while it loads: each weight becomes codes as soon as it is read, without calibration.

Every layer gets the same bits; where floats are asked, convolutions get integers. Nothing is known of inputs, so they
stay in floating point or are scaled at run time, and the first text token needs no row of its own: in both cases its
size harms no other token.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mixdq.errors import ArtifactFormatError, ConfigError
from mixdq.integrations.checkpoint import check_checkpoint
from mixdq.integrations.diffusers.config import Recipe
from mixdq.integrations.saved_format import SavedModel
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.heap import HEAP
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.linear import QuantizedLinear
from mixdq.types.plan import FLOAT_BITS, BitPlan, LayerBits

log = logging.getLogger(__name__)

SHOWN = 8

_FLOAT = LayerBits(weight=FLOAT_BITS, activation=FLOAT_BITS)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class OnTheFly:
    """How the quantizer fills a model whose files hold float weights."""

    # A bias and its weight may come from two files, and the layer that takes both is made only once.
    supports_parallel_loading = False

    def __init__(self, recipe: Recipe, backend: str) -> None:
        self.recipe = recipe
        self.backend = backend
        self.layouts: Mapping[str, LayerLayout] = {}

    def prepare(
        self, model: nn.Module, files: Sequence[str], state: Mapping[str, Tensor], in_float32: Sequence[str]
    ) -> SavedModel:
        """Return what the model will be; nothing is changed yet.

        `files` are safetensors, or `state` holds what a single file had; `in_float32` names modules that diffusers
        keeps in float32.

        Raises:
            ConfigError: a name in `modules_to_not_convert` matches nothing, or nothing is left to quantize.
            ArtifactFormatError: tensors are missing, or of another shape or type than the model's.
        """
        saved = plan_for(model, self.recipe, in_float32)
        self.layouts = saved.layouts()
        if files:
            check_checkpoint(model, files, list(saved.plan.layers))
        else:
            _check_state(model, state)
        return saved

    def owns(self, model: nn.Module, name: str) -> bool:
        """Return whether a tensor is a weight that is to be quantized."""
        path, _, kind = name.rpartition(".")
        return kind == "weight" and path in self.layouts

    def put(self, model: nn.Module, name: str, tensor: Tensor) -> None:
        """Put a quantized layer of this weight in the float layer's place; its bias comes before or after.

        Raises:
            NonFiniteError: the weight holds NaN or infinity.
        """
        path = name.rpartition(".")[0]
        module, layout = model.get_submodule(path), self.layouts[path]
        parts = quantize_weight(
            tensor,
            layout.bits.weight,
            symmetric=layout.symmetric,
            number=layout.bits.number,
            splits=layout.splits,
            name=layout.name,
        )
        successor: nn.Module
        if isinstance(module, nn.Conv2d):
            successor = QuantizedConv2d.from_float(module, layout, parts, None, backend=self.backend)
        else:
            assert isinstance(module, nn.Linear)
            successor = QuantizedLinear.from_float(module, layout, parts, None, None, backend=self.backend)
        model.set_submodule(path, successor)
        HEAP.freed(tensor.nbytes)
        log.debug("%s: %s", path, layout.bits)


def plan_for(model: nn.Module, recipe: Recipe, in_float32: Sequence[str] = ()) -> SavedModel:
    """Return what a recipe makes of a model: every Linear and Conv2d quantized that it does not except.

    Raises:
        ConfigError: a name in `modules_to_not_convert` matches nothing, or nothing is left to quantize.
    """
    kinds = {name: type(module) for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d)}
    names = list(kinds)
    wrong = [kept for kept in recipe.modules_to_not_convert if not any(_lies_in(name, kept) for name in names)]
    if wrong:
        raise ConfigError(
            f"modules_to_not_convert: {wrong[:SHOWN]} match no Linear or Conv2d of {type(model).__name__}; expected "
            f"whole parts of a dotted path such as {names[0] if names else 'conv_in'!r}"
        )
    kept = (*recipe.modules_to_not_convert, *in_float32)
    bits = LayerBits(weight=recipe.weight_bits, activation=recipe.activation_bits, number=recipe.number)
    of_kind = {nn.Linear: bits, nn.Conv2d: replace(bits, number="int")}
    layers = {name: _FLOAT if any(_lies_in(name, each) for each in kept) else of_kind[kinds[name]] for name in names}
    if set(layers.values()) <= {_FLOAT}:
        raise ConfigError(f"{type(model).__name__}: no Linear or Conv2d is left to quantize")
    splits = _input_splits(model)
    return SavedModel(
        plan=BitPlan(name=f"every layer {bits}", layers=layers),
        symmetric=recipe.symmetric,
        activations=recipe.activations,
        input_splits={name: parts for name, parts in splits.items() if layers[name] != _FLOAT},
    )


def _lies_in(name: str, module: str) -> bool:
    """Return whether a layer is in a module: whether the module's path, or the end of it, is within the layer's.

    >>> _lies_in("up_blocks.0.attn2.to_k", "attn2"), _lies_in("conv_in", "conv")
    (True, False)
    """
    return f".{module}." in f".{name}."


def _input_splits(model: nn.Module) -> dict[str, tuple[int, ...]]:
    # Diffusers imports this module before it has any model itself.
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from mixdq.pipeline.families.unet import UNetFamily

    return UNetFamily().input_splits(model) if isinstance(model, UNet2DConditionModel) else {}


def _check_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Return if what a single file had fills the model; shapes diffusers checks by itself."""
    complaints = [
        f"{name} is missing" if name not in state else f"{name} is {state[name].dtype}"
        for name, tensor in model.state_dict().items()
        if name not in state or (tensor.is_floating_point() and state[name].dtype not in _DTYPES)
    ]
    if complaints:
        more = f"; and {len(complaints) - SHOWN} more" if len(complaints) > SHOWN else ""
        raise ArtifactFormatError(f"the file does not hold this model: {'; '.join(complaints[:SHOWN])}{more}")
