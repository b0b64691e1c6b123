"""Blocks with what stands around their layers folded in, against diffusers' own; interpreted, or on a GPU."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mixdq.integrations.diffusers import MixDQConfig
from mixdq.metrics.sqnr import sqnr
from mixdq.runtime.blocks import FoldedOutput, Folding, fold_blocks, unfold_blocks
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.layer import QuantizedLayer
from mixdq.testing import tiny_sdxl_pipeline

pytestmark = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

DEVICE = available.device_type()
NEARLY = 40.0
"""dB, where a code here and there falls otherwise, for a norm's last bit."""
FOLDED = 3
"""Blocks of the model below that fold."""

Inputs = tuple[Tensor, ...]


class Model(nn.Module):
    """A resnet and a transformer of one block, as they stand in a UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResnetBlock2D(in_channels=4, out_channels=8, temb_channels=6, groups=2)
        self.transformer = Transformer2DModel(
            2, 4, 8, norm_num_groups=2, cross_attention_dim=6, use_linear_projection=True
        )

    def forward(self, x: Tensor, time: Tensor, text: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
        x = self.resnet(x, time)
        y: Tensor = self.transformer(x, text, encoder_attention_mask=mask, return_dict=False, **more)[0]
        return y


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 5, 4), (2, 6), (2, 3, 6))
    x, time, text = (torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes)
    return x.contiguous(memory_format=torch.channels_last), time, text


@pytest.fixture
def plain(quantized: Callable[..., QuantizedLayer]) -> Model:
    """A model whose layers are on the GPU's kernels, not folded."""
    model = Model().eval()
    for name, module in list(model.named_modules()):
        if type(module) in (nn.Linear, nn.Conv2d):
            model.set_submodule(name, quantized(module, "W8A8", backend="cuda"))
    return model.to(DEVICE)


@pytest.fixture
def model(plain: Model) -> Model:
    """The same, folded."""
    twin = copy.deepcopy(plain)
    assert fold_blocks(twin) == FOLDED
    return twin


@torch.no_grad()
def drawn(model: nn.Module, inputs: Inputs, **more: Any) -> Tensor:
    y: Tensor = model(*inputs, **more)
    return y


class Operators(TorchDispatchMode):
    """Counts what torch computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func._opname] += 1
        return func(*args, **(kwargs or {}))


def test_folded_it_draws_the_same_and_no_norm_gate_or_sum_is_a_pass_of_its_own(plain, model, inputs) -> None:
    counts, outputs = [], []
    for each in (plain, model):
        with Operators() as operators:
            outputs.append(drawn(each, inputs))
        own = ("native_group_norm", "native_layer_norm", "silu", "gelu", "add")
        counts.append([operators.calls[name] for name in own])
    assert counts == [[3, 3, 3, 1, 6], [0, 0, 0, 0, 0]]
    assert sqnr(*outputs) > NEARLY
    assert outputs[1].is_contiguous(memory_format=torch.channels_last)


def test_of_a_joined_input_no_norm_is_a_pass_of_its_own(quantized) -> None:
    block = ResnetBlock2D(in_channels=12, out_channels=8, temb_channels=6, groups=2, groups_out=2).eval()
    for name, splits in {"conv1": (8, 4), "conv_shortcut": (8, 4), "conv2": (), "time_emb_proj": ()}.items():
        block.set_submodule(name, quantized(block.get_submodule(name), "W8A8", splits=splits, backend="cuda"))
    given = torch.randn(2, 12, 4, 3, device=DEVICE), torch.randn(2, 6, device=DEVICE)
    wanted = drawn(block.to(DEVICE), given)
    assert fold_blocks(block) == 1
    with Operators() as operators:
        assert sqnr(wanted, drawn(block, given)) > NEARLY
    assert [operators.calls[name] for name in ("native_group_norm", "silu", "add")] == [0, 0, 1]


def test_undone_it_is_as_it_was_and_done_twice_is_done_once(plain, model) -> None:
    assert fold_blocks(model) == 0
    assert [type(each).__name__ for each in model.modules()] == [type(each).__name__ for each in plain.modules()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert unfold_blocks(model) == FOLDED
    assert [type(each) for each in model.modules()] == [type(each) for each in plain.modules()]
    assert not any(isinstance(each, FoldedOutput) for module in model.modules() for each in vars(module).values())


def test_copied_and_pickled_it_stays_folded(model, inputs) -> None:
    expected = drawn(model, inputs)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert [type(each) for each in model.modules()] == [type(each) for each in twin.modules()]
    assert torch.equal(drawn(twin, inputs), expected)


def test_a_saved_denoiser_opens_folded_and_dequantized_nothing_is(tmp_path: Path) -> None:
    tiny_sdxl_pipeline().unet.save_pretrained(tmp_path / "float")
    recipe = MixDQConfig(weight_bits=8, backend="cuda")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "float", quantization_config=recipe)
    unet.save_pretrained(tmp_path / "saved")
    given = MixDQConfig(backend="cuda")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "saved", quantization_config=given)
    blocks = [sum(isinstance(module, Folding) for module in each.modules()) for each in (unet, again)]
    assert blocks[0] == blocks[1] > 10
    assert not any(isinstance(module, Folding) for module in again.dequantize().modules())


def test_compiled_there_is_no_graph_break(model, inputs) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    assert torch.equal(drawn(compiled, inputs), drawn(model, inputs))
    torch._dynamo.reset()


BLOCK = "transformer.transformer_blocks.0"
WATCHED = ("norm1", "norm3", "attn1.to_q", "attn1.to_out.0", "attn2", "ff.net.0", "ff.net.2")


@pytest.mark.parametrize(
    "names",
    [("resnet.norm1", "transformer.norm"), ("resnet.conv2", *(f"{BLOCK}.{name}" for name in WATCHED))],
    ids=["norms", "parts of blocks"],
)
def test_whoever_watches_a_module_inside_sees_what_it_is_given(plain, model, inputs, names) -> None:
    seen: list[dict[str, Tensor]] = [{}, {}]
    for each, kept in zip((plain, model), seen, strict=True):
        for name in names:
            each.get_submodule(name).register_forward_hook(
                lambda _, args, output, name=name, kept=kept: kept.update({name: args[0]})
            )
    assert sqnr(drawn(plain, inputs), drawn(model, inputs)) > NEARLY
    assert set(seen[1]) == set(names)
    assert all(sqnr(seen[0][name], seen[1][name]) > NEARLY for name in names)


def test_what_stands_in_a_layers_place_is_called(plain, model, inputs) -> None:
    """As accelerate's hooks do, which bring the weights of offloaded layers."""
    for each in (plain, model):
        for name in ("resnet.conv1", f"{BLOCK}.attn1"):
            module = each.get_submodule(name)
            module.forward = lambda *args, forward=module.forward, **kwargs: 2.0 * forward(*args, **kwargs)
    assert sqnr(drawn(plain, inputs), drawn(model, inputs)) > NEARLY


def test_masks_and_arguments_of_attention_go_to_diffusers_own(plain, model, inputs) -> None:
    mask = torch.tensor([[True, False, True]] * 2, device=DEVICE)
    found, expected = (drawn(each, inputs, mask=mask) for each in (model, plain))
    assert sqnr(expected, found) > NEARLY
    # Arguments of no meaning change nothing.
    given = {"cross_attention_kwargs": {"temb": None}}
    found = drawn(model, inputs, **given)
    assert sqnr(drawn(plain, inputs), found) > NEARLY
    assert sqnr(expected, found) < NEARLY


def test_another_processor_is_asked(plain, model, inputs) -> None:
    for each in (plain, model):
        attn = each.get_submodule(f"{BLOCK}.attn2")
        attn.set_processor(Doubled())
    assert sqnr(drawn(plain, inputs), drawn(model, inputs)) > NEARLY


class Doubled:
    """A processor of somebody else's."""

    def __call__(self, attn: Any, hidden_states: Tensor, **_: Any) -> Tensor:
        return 2.0 * hidden_states


def test_gradients_flow_where_they_are_asked_for(model, inputs) -> None:
    x = inputs[0].clone().requires_grad_()
    model(x, *inputs[1:]).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0.0).any())


def test_an_adapter_is_heard_and_leaves_nothing(plain, model, inputs) -> None:
    peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    before = drawn(model, inputs)
    targets = ["to_q", "net.2", "proj_in", "time_emb_proj"]
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    peft.inject_adapter_in_model(config, plain)
    tuner = peft.tuners.lora.LoraModel(model, config, "default")
    peft.set_peft_model_state_dict(model, peft.get_peft_model_state_dict(plain))
    heard = drawn(model, inputs)
    assert sqnr(drawn(plain, inputs), heard) > NEARLY
    assert sqnr(before, heard) < NEARLY
    tuner.unload()
    assert torch.equal(drawn(model, inputs), before)


RESNETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with a shortcut": {"out_channels": 16},
    "without a time": {"temb_channels": None},
    "of an activated time": {"skip_time_act": True},
    "up": {"up": True},
    "down": {"down": True},
    "scale and shift": {"time_embedding_norm": "scale_shift"},
    "scaled": {"output_scale_factor": 2.0},
    "of another activation": {"non_linearity": "gelu"},
}


@pytest.mark.parametrize("options", RESNETS.values(), ids=RESNETS)
def test_a_resnet_of_floats_gives_what_it_gave_bit_for_bit(options: dict[str, Any]) -> None:
    given = {"in_channels": 8, "temb_channels": 4, "groups": 2, **options}
    block = ResnetBlock2D(**given).eval().to(DEVICE)
    x = torch.randn(2, 8, 4, 4, device=DEVICE)
    assert_same(block, x, torch.randn(2, 4, device=DEVICE) if given["temb_channels"] else None)


BLOCKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without text": {"cross_attention_dim": None},
    "twice itself": {"cross_attention_dim": None, "double_self_attention": True},
    "only text": {"only_cross_attention": True},
    "of another gate": {"activation_fn": "gelu"},
    "with places": {"positional_embeddings": "sinusoidal", "num_positional_embeddings": 9},
    "with a last dropout": {"final_dropout": True},
    "of plain norms": {"norm_elementwise_affine": False},
}


@pytest.mark.parametrize("options", BLOCKS.values(), ids=BLOCKS)
def test_a_transformer_block_of_floats_gives_what_it_gave_bit_for_bit(options: dict[str, Any]) -> None:
    given = {"dim": 8, "num_attention_heads": 2, "attention_head_dim": 4, "cross_attention_dim": 6, **options}
    block = BasicTransformerBlock(**given).eval().to(DEVICE)
    text = torch.randn(2, 3, 6, device=DEVICE) if given["cross_attention_dim"] else None
    x = torch.randn(2, 5, 8, device=DEVICE)
    assert_same(block, x, encoder_hidden_states=text)
    block.set_chunk_feed_forward(1, dim=0)
    assert_same(block, x, encoder_hidden_states=text)


@pytest.mark.parametrize("linear", [True, False])
def test_a_transformer_of_floats_gives_what_it_gave(linear: bool) -> None:
    block = Transformer2DModel(2, 4, 8, norm_num_groups=2, use_linear_projection=linear).eval().to(DEVICE)
    x = torch.randn(2, 8, 4, 3, device=DEVICE)
    for each in (x, x.contiguous(memory_format=torch.channels_last)):
        assert_same(block, each, return_dict=False, near=True)


def test_in_training_dropout_stays() -> None:
    block = ResnetBlock2D(in_channels=8, temb_channels=None, groups=2, dropout=0.5).train().to(DEVICE)
    fold_blocks(block)
    x = torch.randn(2, 8, 4, 4, device=DEVICE)
    with torch.no_grad():
        assert not torch.equal(block(x, None), block(x, None))


def assert_same(block: Callable[..., Any], *args: Any, near: bool = False, **kwargs: Any) -> None:
    assert isinstance(block, nn.Module)
    folded = copy.deepcopy(block)
    assert fold_blocks(folded) > 0
    with torch.no_grad():
        found, expected = folded(*args, **kwargs), block(*args, **kwargs)
    found, expected = (each[0] if isinstance(each, tuple) else each for each in (found, expected))
    torch.testing.assert_close(found, expected, **({} if near else {"rtol": 0.0, "atol": 0.0}))
