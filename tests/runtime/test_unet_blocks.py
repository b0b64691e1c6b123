"""A whole UNet, folded: layers that read the text or the time are called together; interpreted, or on a GPU."""

import copy
import gc
import json
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from mixdq.integrations.diffusers import MixDQConfig
from mixdq.runtime.blocks import Folding
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.obstacles import Waits
from mixdq.testing import tiny_sdxl_pipeline

pytestmark = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

DEVICE = available.device_type()

Draw = Callable[..., tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet of few blocks, in floating point."""
    folder = tmp_path_factory.mktemp("unet")
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=2,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        transformer_layers_per_block=2,
        attention_head_dim=2,
        cross_attention_dim=6,
        norm_num_groups=2,
        use_linear_projection=True,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def unet(saved: Path) -> UNet2DConditionModel:
    recipe = MixDQConfig(weight_bits=8, activation_bits=8, activations="dynamic", backend="cuda")
    return UNet2DConditionModel.from_pretrained(saved, quantization_config=recipe).to(DEVICE)


@pytest.fixture
def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sample, text = (torch.randn(shape, generator=generator).to(DEVICE) for shape in ((1, 4, 2, 2), (1, 3, 6)))
    time = torch.tensor([7], device=DEVICE)
    return {"sample": sample, "timestep": time, "encoder_hidden_states": text, "return_dict": False}


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many products are started."""
    from mixdq.runtime.kernels.gpu.layers import GpuLayer

    counts: Counter[str] = Counter()
    multiply = GpuLayer.multiply
    monkeypatch.setattr(GpuLayer, "multiply", lambda *args: counts.update(["all"]) or multiply(*args))
    return counts


@torch.no_grad()
def drawn(call: Draw, inputs: dict[str, Any]) -> Tensor:
    return call(**inputs)[0]


def test_called_as_a_whole_it_draws_the_same_in_fewer_products(unet, inputs, products) -> None:
    apart = copy.deepcopy(unet)
    # It does not say when a call begins.
    del apart.get_time_embed
    alone = drawn(apart, inputs)
    each = products.total()
    products.clear()
    assert torch.equal(drawn(unet, inputs), alone)
    texts = sum(name.endswith(("attn2.to_k", "attn2.to_v")) for name, _ in unet.named_modules())
    times = sum(name.endswith("time_emb_proj") for name, _ in unet.named_modules())
    assert min(texts, times) > 2
    # Keys and values of a block are one product in any case.
    assert each - products.total() == texts // 2 - 1 + times - 1

    # Nothing is kept: what is written to a text in between is heard.
    inputs["encoder_hidden_states"].mul_(-1.0)
    with Waits(torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device(DEVICE)) as waits:
        changed = drawn(unet, inputs)
    assert not torch.equal(changed, alone)
    assert not waits.found

    # A block that is given a text of its own reads that; a layer that is watched is called by itself.
    seen: list[Tensor] = []
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    block.register_forward_pre_hook(
        lambda _, args, given: (args, {**given, "encoder_hidden_states": -given["encoder_hidden_states"]}),
        with_kwargs=True,
    )
    unet.up_blocks[0].resnets[0].time_emb_proj.register_forward_hook(lambda _, args, y: seen.append(y))
    assert not torch.equal(drawn(unet, inputs), changed)
    assert len(seen) == 1


def test_a_unet_goes_when_nobody_holds_it_but_its_own_hooks(unet, inputs) -> None:
    model = copy.deepcopy(unet)
    block = model.mid_block.attentions[0].transformer_blocks[0]
    block.register_forward_hook(lambda *_, held=model: None)
    drawn(model, inputs)
    gone = weakref.ref(model)
    del model, block
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device to capture on")
def test_a_graph_captured_by_hand_draws_the_same(unet, inputs) -> None:
    drawn(unet, inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = drawn(unet, inputs)
    for factor in (1.0, -2.0):
        for name in ("sample", "encoder_hidden_states"):
            inputs[name].mul_(factor)
        expected = drawn(unet, inputs)
        graph.replay()
        assert torch.equal(found, expected)


def test_compiled_as_a_whole_it_draws_the_same(unet, inputs) -> None:
    expected = drawn(unet, inputs)
    torch._dynamo.reset()
    assert torch.equal(drawn(torch.compile(unet, backend="aot_eager", fullgraph=True), inputs), expected)
    torch._dynamo.reset()


def test_a_pipeline_of_it_is_diffusers_own(tmp_path: Path) -> None:
    pipe = tiny_sdxl_pipeline()
    pipe.save_pretrained(tmp_path / "float")
    recipe = MixDQConfig(weight_bits=8, backend="cuda")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "float/unet", quantization_config=recipe)
    assert any(isinstance(module, Folding) for module in unet.modules())
    # Pipelines made from others ask whether it is one of those they know.
    assert type(unet) is UNet2DConditionModel
    type(pipe).from_pretrained(tmp_path / "float", unet=unet).save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved/model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert json.loads((tmp_path / "saved/unet/config.json").read_text())["_class_name"] == "UNet2DConditionModel"
    opened = type(pipe).from_pretrained(tmp_path / "saved")
    assert any(isinstance(module, QuantizedLayer) for module in opened.unet.modules())
