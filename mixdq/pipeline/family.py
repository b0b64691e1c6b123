"""What must be known of a kind of pipeline, and which kinds there are."""

from collections.abc import Sequence
from typing import Protocol

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from mixdq.errors import UnsupportedModelError
from mixdq.pipeline.families.flux import FluxFamily
from mixdq.pipeline.families.sd import SDFamily
from mixdq.pipeline.families.sd3 import SD3Family
from mixdq.pipeline.families.sdxl import SDXLFamily
from mixdq.types.layers import Group

Pipeline = DiffusionPipeline
"""Any pipeline of diffusers: the name under which rooms that do not import diffusers know it."""


class ModelFamily(Protocol):
    """A kind of pipeline: which module is quantized, what each layer is, how prompts become embeddings.

    `name` is written into layer tables, `description` says in words what it matches, and `denoiser_name` is the
    pipeline component that is quantized.
    """

    name: str
    description: str
    denoiser_name: str

    def matches(self, pipe: DiffusionPipeline) -> bool:
        """Return whether this family knows `pipe`."""

    def denoiser(self, pipe: DiffusionPipeline) -> nn.Module:
        """Return the module of `pipe` that is quantized."""

    def group(self, layer_name: str) -> Group:
        """Return the group of a layer, which decides its metric."""

    def is_bos(self, layer_name: str) -> bool:
        """Return whether a layer reads the text embedding, whose first token is set aside."""

    def input_splits(self, denoiser: nn.Module) -> dict[str, tuple[int, ...]]:
        """Return layer -> channels of each part of its input, for layers that read a concatenation."""

    def encode(self, pipe: DiffusionPipeline, prompts: Sequence[str], guidance_scale: float) -> dict[str, Tensor]:
        """Return the text embeddings of `prompts`, by the names under which the pipeline's call takes them."""


FAMILIES: tuple[ModelFamily, ...] = (SDXLFamily(), SDFamily(), FluxFamily(), SD3Family())


def find_family(pipe: DiffusionPipeline) -> ModelFamily:
    """Return the first family that knows `pipe`.

    Raises:
        UnsupportedModelError: none does; the text lists those there are.
    """
    for family in FAMILIES:
        if family.matches(pipe):
            return family
    components = getattr(pipe, "components", {})
    denoiser = next((components[key] for key in ("transformer", "unet", "prior") if components.get(key)), None)
    having = f" with a {type(denoiser).__name__}" if denoiser is not None else ""
    known = "; ".join(f"{family.name}: {family.description}" for family in FAMILIES)
    kind = type(denoiser).__name__ if denoiser is not None else "MODEL"
    raise UnsupportedModelError(
        f"no model family knows {type(pipe).__name__}{having}. There are {known}. Hand over such a pipeline, if one "
        f"can be made of the same parts; or quantize without calibration, while it loads: {kind}.from_pretrained(..., "
        'quantization_config=mixdq.MixDQConfig(weight_bits=8, activation_bits=8, activations="dynamic"))'
    )
