"""A toy denoiser with one of each: a convolution, a layer that reads text, a skip join, a plain Linear."""

import pytest
import torch
from torch import Tensor, nn

from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.tensors import ActivationRange, CalibrationRecord

RANGE = ActivationRange(min=-4.0, max=4.0, batches=1)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.ModuleDict({"to_k": nn.Linear(5, 6, bias=False)})
        self.join = nn.Conv2d(9, 4, 1)
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        h = self.conv(x) + self.block["to_k"](text).mean(1)[:, :, None, None]
        h = self.join(torch.cat([h, x], dim=1))
        return self.out(h.movedim(1, -1))


def layer(name: str, op: str, *shape: int, bos: bool = False, splits: tuple[int, ...] = ()) -> LayerSpec:
    return LayerSpec(
        name=name, op=op, group="quality", weight_shape=shape, input_numel=10, macs=10, bos=bos, input_splits=splits
    )


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy().eval()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    """Two pictures and two texts whose first token is the shared one."""
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 7, 5, generator=generator)
    text[:, 0] = 8.0
    return x, text


@pytest.fixture
def table() -> LayerTable:
    return LayerTable(
        model="toy",
        family="toy",
        digest="d",
        layers=(
            layer("conv", "conv2d", 6, 3, 3, 3),
            layer("block.to_k", "linear", 6, 5, bos=True),
            layer("join", "conv2d", 4, 9, 1, 1, splits=(6, 3)),
            layer("out", "linear", 4, 4),
        ),
    )


@pytest.fixture
def record(toy: Toy) -> CalibrationRecord:
    state = torch.full((5,), 8.0)
    with torch.no_grad():
        output = toy.block["to_k"](state)
    return CalibrationRecord(
        ranges={"conv": (RANGE,), "block.to_k": (RANGE,), "join": (RANGE, RANGE), "out": (RANGE,)},
        bos_input=state,
        bos_outputs={"block.to_k": output},
    )
