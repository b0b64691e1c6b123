"""SDXL's UNet, full or cut, with random weights or none; and the layers it is made of."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

TEXT_TOKENS, TEXT_WIDTH, POOLED_WIDTH = 77, 2048, 1280
FULL, CUT = (1, 2, 10), (1, 2, 2)
"""Transformer layers of a block at each level: SDXL's own, and a cut that fits where SDXL's does not."""


@dataclass(frozen=True)
class Shape:
    """A Linear or Conv2d and the input it gets: what a kernel's time depends on."""

    op: str
    weight: tuple[int, ...]
    input: tuple[int, ...]
    stride: int = 1
    padding: int = 0

    @property
    def operations(self) -> int:
        """Multiplications and additions of one call."""
        return 2 * self.rows * torch.Size(self.weight).numel()

    @property
    def outputs(self) -> int:
        """Elements that come out."""
        return self.rows * self.weight[0]

    @property
    def rows(self) -> int:
        """Vectors or pixels that come out."""
        if self.op == "linear":
            return torch.Size(self.input[:-1]).numel()
        # Every convolution of SDXL keeps the size, or halves it where it strides.
        return self.input[0] * (self.input[2] // self.stride) * (self.input[3] // self.stride)

    def __str__(self) -> str:
        into = "x".join(map(str, self.input[:-1])) if self.op == "linear" else "x".join(map(str, self.input[2:]))
        window = f" {self.weight[2]}x{self.weight[3]}" if self.op == "conv2d" else ""
        stride = f" /{self.stride}" if self.stride > 1 else ""
        return f"{self.op}{window}{stride} {self.weight[1]} -> {self.weight[0]}, {into}"


def unet(
    transformer_layers: Sequence[int] = FULL, *, channels: Sequence[int] = (320, 640, 1280)
) -> UNet2DConditionModel:
    """Return the UNet on the device and in the dtype that are torch's default."""
    return UNet2DConditionModel(
        sample_size=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=tuple(channels),
        layers_per_block=2,
        transformer_layers_per_block=list(transformer_layers),
        attention_head_dim=[width // 64 for width in channels],
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=POOLED_WIDTH + 6 * 256,
    )


def inputs(batch: int, side: int, dtype: torch.dtype, device: str = "cpu") -> dict[str, object]:
    """Return what one call of the UNet takes, for a latent of `side` x `side`."""
    text = torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH, dtype=dtype, device=device)
    # A first token that is the same for every text, as BOS is.
    text[:, 0] = 1.0
    return {
        "sample": torch.randn(batch, 4, side, side, dtype=dtype, device=device),
        "timestep": torch.tensor(999, device=device),
        "encoder_hidden_states": text,
        "added_cond_kwargs": {
            "text_embeds": torch.randn(batch, POOLED_WIDTH, dtype=dtype, device=device),
            "time_ids": torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]], device=device).expand(batch, -1),
        },
    }


def sd15_unet() -> UNet2DConditionModel:
    """Return the UNet of Stable Diffusion 1.5, on the device and in the dtype that are torch's default."""
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def shapes(batch: int, side: int) -> Counter[Shape]:
    """Return every distinct layer of the full UNet and how often a call runs it; nothing is computed."""
    with torch.device("meta"):
        return shapes_of(unet(), inputs(batch, side, torch.float32, "meta"))


def sd15_shapes(batch: int, side: int) -> Counter[Shape]:
    """Return the same of Stable Diffusion 1.5."""
    with torch.device("meta"):
        model = sd15_unet()
    sample = torch.empty(batch, 4, side, side, device="meta")
    text = torch.empty(batch, TEXT_TOKENS, model.config["cross_attention_dim"], device="meta")
    return shapes_of(model, {"sample": sample, "timestep": torch.tensor(999), "encoder_hidden_states": text})


def shapes_of(model: nn.Module, arguments: dict[str, object]) -> Counter[Shape]:
    """Return every distinct layer of a model on meta that a call with these arguments runs, and how often."""
    return Counter(named_shapes_of(model, arguments).values())


def named_shapes_of(model: nn.Module, arguments: dict[str, object]) -> dict[str, Shape]:
    """Return name -> layer; each is called once."""
    found: dict[str, Shape] = {}

    def note(name: str, module: nn.Module, x: Tensor) -> None:
        assert isinstance(module, nn.Linear | nn.Conv2d)
        assert name not in found
        weight = tuple(module.weight.shape)
        if isinstance(module, nn.Conv2d):
            padding = module.padding[0]
            assert isinstance(padding, int)
            found[name] = Shape("conv2d", weight, tuple(x.shape), module.stride[0], padding)
        else:
            found[name] = Shape("linear", weight, tuple(x.shape))

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(lambda module, inputs, name=name: note(name, module, inputs[0]))
    with torch.no_grad():
        model(**arguments)
    return found
