"""What `benchmarks.unet` measures: SDXL's UNet of some size with random weights, made quick by a candidate."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from benchmarks import sdxl

GIB = 2**30
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "full": (sdxl.FULL, (320, 640, 1280)),
    "cut": (sdxl.CUT, (320, 640, 1280)),
    "smoke": ((1, 1, 1), (64, 64, 64)),
}
"""Size -> transformer layers and channels of each level."""
WEIGHTS = {"full": 2.57e9, "cut": 0.90e9, "smoke": 7e6}


class MissingError(Exception):
    """The candidate cannot run here; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """The model and its inputs. `side` is the latent's height and width; `cache` holds what takes long to prepare."""

    size: str
    batch: int
    side: int
    cache: Path

    def unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        """Return the UNet in `dtype`; its random weights decide what is drawn, not how long it takes."""
        layers, channels = SIZES[self.size]
        return random_unet(layers, channels, dtype)

    def inputs(self, dtype: torch.dtype) -> dict[str, object]:
        """Return the arguments of one call."""
        return sdxl.inputs(self.batch, self.side, dtype)


@dataclass(frozen=True)
class Loaded:
    """A candidate that is ready: what is timed, and the bytes of its weights as it stores them."""

    call: Callable[[], object]
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run the UNet.

    Attributes:
        load: makes it ready, in a process of its own; raises MissingError where it cannot run.
        steps: what must be in the case's cache before, each done in a process that then ends; they see for themselves
            whether it is there.
        held, loading: bytes a weight while it runs, and at most while it loads; estimates, to see how many fit.
    """

    load: Callable[[Case], Loaded]
    steps: tuple[Callable[[Case], None], ...] = ()
    held: float
    loading: float

    def bytes_held(self, case: Case) -> float:
        """Return about how much memory its process takes between calls."""
        return _process_bytes(case) + self.held * WEIGHTS[case.size]

    def bytes_loading(self, case: Case) -> float:
        """Return about how much memory its process takes at most."""
        return _process_bytes(case) + max(self.held, self.loading) * WEIGHTS[case.size]


def random_unet(
    layers: tuple[int, ...], channels: tuple[int, ...], dtype: torch.dtype, device: str = "cpu"
) -> UNet2DConditionModel:
    """Return the UNet in `dtype` with small random weights, never held in another."""
    with torch.device("meta"):
        model = sdxl.unet(layers, channels=channels)
    # Module by module, for diffusers warns when it is asked itself.
    for module in model.children():
        module.to(dtype)
    model.to_empty(device=device)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.03, 0.03)
    model.eval().requires_grad_(False)
    return model


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, those inside tensor subclasses too."""
    return sum(_bytes(tensor) for tensor in model.state_dict().values())


def _bytes(tensor: torch.Tensor) -> int:
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    return tensor.nbytes


def _process_bytes(case: Case) -> float:
    """Libraries, and activations of 64 x 64 latents."""
    return GIB * (0.7 + 0.5 * case.batch * (case.side / 64) ** 2)
