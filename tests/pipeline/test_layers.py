from dataclasses import dataclass
from functools import partial

import accelerate
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mixdq.errors import UnsupportedModelError
from mixdq.pipeline.families.flux import FluxFamily
from mixdq.pipeline.families.sdxl import SDXLFamily
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import layer_specs, list_layers, quantizable_layers, watched, weights_digest
from mixdq.pipeline.trace import record_calls, replay
from mixdq.testing import fingerprint, tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline

SPEC = GenerationSpec(height=16, width=16)


@pytest.mark.parametrize(
    "build",
    [
        tiny_sdxl_pipeline,
        partial(tiny_sdxl_pipeline, text_encoders=1, layers_per_block=2),
        tiny_sd_pipeline,
        tiny_flux_pipeline,
        tiny_sd3_pipeline,
    ],
    ids=["sdxl", "sdxl-one-encoder", "sd", "flux", "sd3"],
)
def test_every_linear_and_convolution_is_listed_once_in_module_order(build) -> None:
    pipe = build()
    family = find_family(pipe)
    denoiser = family.denoiser(pipe)
    before = fingerprint(denoiser)
    table = list_layers(pipe, family, SPEC, model="tiny")
    expected = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    assert [layer.name for layer in table] == expected
    for layer in table:
        assert layer.weight_shape == tuple(denoiser.get_submodule(layer.name).weight.shape)
    assert {layer.name: layer.input_splits for layer in table if layer.input_splits} == family.input_splits(denoiser)
    assert fingerprint(denoiser) == before


@pytest.mark.parametrize("build", [tiny_sdxl_pipeline, tiny_sd_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline])
def test_macs_are_half_of_the_operations_that_torch_counts(build) -> None:
    pipe = build()
    family = find_family(pipe)
    table = list_layers(pipe, family, SPEC, model="tiny")
    (call,) = record_calls(pipe, family, ["a cat"], SPEC).calls
    with FlopCounterMode(display=False) as counter:
        replay(family.denoiser(pipe), call)
    aten = torch.ops.aten
    counts = counter.get_flop_counts()["Global"]
    # Linear layers are mm and addmm; attention itself counts apart.
    assert sum(layer.macs for layer in table) * 2 == sum(
        counts.get(kind, 0) for kind in (aten.mm, aten.addmm, aten.convolution)
    )


def test_sizes_are_of_one_picture_whatever_the_steps_guidance_and_grow_with_its_area() -> None:
    pipe = tiny_sdxl_pipeline()
    family = find_family(pipe)
    plain = list_layers(pipe, family, SPEC, model="tiny")
    assert list_layers(pipe, family, GenerationSpec(steps=3, guidance_scale=4.0), model="tiny") == plain
    wide = list_layers(pipe, family, GenerationSpec(height=16, width=32), model="tiny")
    assert plain["conv_in"].input_numel == 4 * 8 * 8
    assert wide["conv_in"].input_numel == 2 * plain["conv_in"].input_numel
    assert wide["time_embedding.linear_1"] == plain["time_embedding.linear_1"]
    to_k = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    assert plain[to_k].bos
    assert plain[to_k].input_numel == 16 * 64


def test_the_digest_is_of_the_weights_alone() -> None:
    pipe = tiny_sdxl_pipeline()
    before = weights_digest(pipe.unet)
    assert weights_digest(tiny_sdxl_pipeline().unet) == before
    assert weights_digest(pipe.unet.half()) != before
    pipe = tiny_sdxl_pipeline()
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] += 1e-3
    assert weights_digest(pipe.unet) != before


def test_channels_last_models_are_split_alike() -> None:
    pipe = tiny_sdxl_pipeline()
    plain = list_layers(pipe, find_family(pipe), SPEC, model="tiny")
    pipe.unet.to(memory_format=torch.channels_last)
    assert list_layers(pipe, find_family(pipe), SPEC, model="tiny") == plain


class WrongSplits(SDXLFamily):
    """Believes that every shortcut splits in the middle."""

    def input_splits(self, denoiser: nn.Module) -> dict[str, tuple[int, ...]]:
        return {
            name: (sum(parts) // 2, sum(parts) - sum(parts) // 2)
            for name, parts in super().input_splits(denoiser).items()
        }


class Joining(nn.Module):
    """A layer that reads a tensor [1, 2, 2] joined with itself along `axis`."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.proj_out = nn.Linear(4 if axis == -1 else 2, 2)

    def forward(self) -> Tensor:
        x = torch.zeros(1, 2, 2)
        return self.proj_out(torch.cat([x, x], dim=self.axis))


class Halves(FluxFamily):
    """Believes that the last layer's input has two parts of 2 channels."""

    def input_splits(self, denoiser: nn.Module) -> dict[str, tuple[int, ...]]:
        return {"proj_out": (2, 2)}


def test_joined_tokens_are_no_parts_of_a_linears_input_and_joined_channels_are() -> None:
    channels, tokens = Joining(-1), Joining(1)
    assert layer_specs(channels, Halves(), channels)[0].input_splits == (2, 2)
    with pytest.raises(UnsupportedModelError, match=r"proj_out.*\(2, 2\).*joins nothing"):
        layer_specs(tokens, Halves(), tokens)


def test_splits_that_the_model_does_not_show_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"up_blocks\.0\.resnets\.1\.conv_shortcut.*\(24, 24\).*\(32, 16\)"):
        list_layers(tiny_sdxl_pipeline(), WrongSplits(), SPEC, model="tiny")


def test_unmerged_lora_and_quantized_layers_are_refused() -> None:
    denoiser = nn.Module()
    denoiser.proj = nn.Module()
    denoiser.proj.base_layer = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match=r"proj\.base_layer.*fuse_lora"):
        list(quantizable_layers(denoiser))
    denoiser.proj = nn.Linear(2, 2)
    denoiser.proj.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match=r"proj.*int8.*quantized already"):
        list(quantizable_layers(denoiser))


def test_a_model_offloaded_layer_by_layer_is_refused_with_the_way_out() -> None:
    pipe = tiny_sdxl_pipeline()
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedModelError, match=r"conv_in: .*offloaded.*remove_all_hooks"):
        list_layers(pipe, find_family(pipe), SPEC, model="tiny")
    pipe.remove_all_hooks()
    assert len(list_layers(pipe, find_family(pipe), SPEC, model="tiny")) > 0


def test_a_layer_that_does_not_run_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny_sdxl_pipeline()
    pipe.unet.spare = nn.Linear(2, 2)
    table = list_layers(pipe, find_family(pipe), SPEC, model="tiny")
    assert "spare" not in {layer.name for layer in table}
    assert "spare" in caplog.text


@dataclass
class Interruption:
    """Raises on its second call."""

    error: type[BaseException]
    calls: int = 0

    def __call__(self, name: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        self.calls += 1
        if self.calls == 2:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_watching_ends_with_the_block_whatever_happens(error: type[BaseException]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = fingerprint(model)
    with pytest.raises(error), watched(dict(model.named_children()), Interruption(error)):
        model(torch.zeros(1, 2))
    assert fingerprint(model) == before


def test_watching_sees_inputs_given_by_name() -> None:
    model = nn.Linear(2, 2)
    seen = []
    with watched({"it": model}, lambda name, module, x, y: seen.append((name, x.tolist()))):
        model(input=torch.tensor([[1.0, 2.0]]))
    assert seen == [("it", [[1.0, 2.0]])]
