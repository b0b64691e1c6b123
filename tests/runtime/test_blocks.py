"""Blocks with what stands around their layers folded in, against diffusers' own; interpreted, or on a GPU."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import mixdq
from mixdq.conversion.convert import convert
from mixdq.integrations.diffusers import MixDQConfig
from mixdq.metrics.sqnr import sqnr
from mixdq.runtime.blocks import FoldedOutput, Folding, fold_blocks, unfold_blocks
from mixdq.runtime.kernels.gpu import available
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.plan import BitPlan, LayerBits

pytestmark = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

DEVICE = available.device_type()
NEARLY = 40.0
"""dB, where a code here and there falls otherwise, for a norm's last bit."""


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_sdxl_pipeline().to(DEVICE)


@pytest.fixture(scope="module")
def converted(pipe: Any) -> Any:
    """A denoiser on the GPU's kernels, folded, as conversion leaves it."""
    table, record = mixdq.inspect(pipe), mixdq.calibrate(pipe, ["a red apple"])
    unet = copy.deepcopy(pipe.unet)
    plan = BitPlan(name="8", layers={spec.name: LayerBits.parse("W8A8") for spec in table})
    convert(unet, plan, table, record, backend="cuda")
    return unet


@pytest.fixture(scope="module")
def inputs(pipe: Any) -> dict[str, Any]:
    text, _, pooled, _ = pipe.encode_prompt("a boat", device=DEVICE, do_classifier_free_guidance=False)
    return {
        "sample": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE),
        "timestep": torch.tensor(999, device=DEVICE),
        "encoder_hidden_states": text,
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.full((1, 6), 16.0, device=DEVICE)},
    }


@pytest.fixture
def denoiser(converted: Any) -> Any:
    return copy.deepcopy(converted)


@pytest.fixture(scope="module")
def wanted(converted: Any, inputs: dict[str, Any]) -> Tensor:
    """What the denoiser gives where nothing is folded."""
    plain = copy.deepcopy(converted)
    assert unfold_blocks(plain) > 0
    return drawn(plain, inputs)


@torch.no_grad()
def drawn(denoiser: Any, inputs: dict[str, Any], **more: Any) -> Tensor:
    y: Tensor = denoiser(**inputs, **more).sample
    return y


class Operators(TorchDispatchMode):
    """Counts what torch computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func._opname] += 1
        return func(*args, **(kwargs or {}))


def test_a_converted_denoiser_is_folded_and_draws_the_same(converted, inputs, wanted) -> None:
    with Operators() as operators:
        found = drawn(converted, inputs)
    assert sqnr(wanted, found) > NEARLY
    left = ("native_group_norm", "native_layer_norm", "gelu", "silu")
    # The denoiser's own: its last norm and SiLU, and those of the time's and the text's embeddings.
    assert [operators.calls[name] for name in left] == [1, 0, 0, 3]


def test_undone_it_is_as_it_was_and_done_twice_is_done_once(pipe, denoiser, inputs, wanted) -> None:
    classes = {type(module).__name__ for module in denoiser.modules()}
    names = list(denoiser.state_dict())
    assert fold_blocks(denoiser) == 0
    folded = unfold_blocks(denoiser)
    assert torch.equal(drawn(denoiser, inputs), wanted)
    assert not any(isinstance(module, Folding) for module in denoiser.modules())
    assert not any(isinstance(each, FoldedOutput) for module in denoiser.modules() for each in vars(module).values())
    assert fold_blocks(denoiser) == folded
    assert {type(module).__name__ for module in denoiser.modules()} == classes
    assert list(denoiser.state_dict()) == names


def test_copied_and_pickled_it_stays_folded(denoiser, inputs) -> None:
    expected = drawn(denoiser, inputs)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(denoiser)))
    kinds = [[type(module) for module in each.modules()] for each in (denoiser, twin)]
    assert kinds[0] == kinds[1]
    assert torch.equal(drawn(twin, inputs), expected)


def test_saved_it_opens_folded_and_dequantized_nothing_is(pipe, inputs, tmp_path: Path) -> None:
    pipe.unet.save_pretrained(tmp_path / "float")
    recipe = MixDQConfig(weight_bits=8, backend="cuda")
    unet = type(pipe.unet).from_pretrained(tmp_path / "float", quantization_config=recipe).to(DEVICE)
    unet.save_pretrained(tmp_path / "saved")
    again = type(pipe.unet).from_pretrained(tmp_path / "saved", quantization_config=MixDQConfig(backend="cuda"))
    again = again.to(DEVICE)
    assert sum(isinstance(module, Folding) for module in again.modules()) > 0
    assert torch.equal(drawn(again, inputs), drawn(unet, inputs))
    assert not any(isinstance(module, Folding) for module in again.dequantize().modules())


@pytest.mark.parametrize("whole", [True, False])
def test_compiled_there_is_no_graph_break(denoiser, inputs, wanted, whole: bool) -> None:
    torch._dynamo.reset()
    if whole:
        denoiser.compile(backend="aot_eager", fullgraph=True)
    else:
        denoiser.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    assert sqnr(wanted, drawn(denoiser, inputs)) > NEARLY
    torch._dynamo.reset()


def test_whoever_watches_a_module_inside_sees_it_called(denoiser, inputs, wanted) -> None:
    seen: dict[str, Tensor] = {}
    block = "mid_block.attentions.0.transformer_blocks.0"
    names = ["mid_block.resnets.0.norm1", "mid_block.resnets.1.conv1", "mid_block.attentions.0.norm"]
    names += [f"{block}.{name}" for name in ("norm2", "attn1.to_out.0", "attn2", "ff.net.0", "ff.net.2")]
    names += ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"]
    for name in names:
        denoiser.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: args[0]})
        )
    before: dict[str, Tensor] = {}
    resnet = denoiser.get_submodule("mid_block.resnets.1")
    resnet.register_forward_pre_hook(lambda module, args: before.update(x=args[0]))
    assert sqnr(wanted, drawn(denoiser, inputs)) > NEARLY
    assert set(seen) == set(names)
    expected = functional.silu(resnet.norm1(before["x"]))
    torch.testing.assert_close(seen["mid_block.resnets.1.conv1"], expected)


def test_masks_and_arguments_of_attention_go_to_diffusers_own(denoiser, inputs) -> None:
    plain = copy.deepcopy(denoiser)
    unfold_blocks(plain)
    tokens = inputs["encoder_hidden_states"].shape[1]
    mask = (torch.arange(tokens, device=DEVICE) < 5)[None]
    found, expected = (drawn(each, inputs, encoder_attention_mask=mask) for each in (denoiser, plain))
    assert sqnr(expected, found) > NEARLY
    assert sqnr(expected, drawn(plain, inputs)) < NEARLY
    given = {"cross_attention_kwargs": {"temb": None}}
    assert sqnr(drawn(plain, inputs, **given), drawn(denoiser, inputs, **given)) > NEARLY


def test_gradients_flow_where_they_are_asked_for(denoiser, inputs) -> None:
    sample = inputs["sample"].clone().requires_grad_()
    denoiser(**{**inputs, "sample": sample}).sample.sum().backward()
    assert sample.grad is not None
    assert bool((sample.grad != 0.0).any())


def test_an_adapter_is_heard_and_leaves_nothing(denoiser, inputs) -> None:
    peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    expected = drawn(denoiser, inputs)
    targets = ["to_q", "conv1", "net.2", "proj_in", "time_emb_proj"]
    denoiser.add_adapter(peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    plain = copy.deepcopy(denoiser)
    unfold_blocks(plain)
    heard = drawn(denoiser, inputs)
    assert sqnr(drawn(plain, inputs), heard) > NEARLY
    assert sqnr(expected, heard) < NEARLY
    denoiser.delete_adapters("default")
    denoiser.unload_lora() if hasattr(denoiser, "unload_lora") else None
    assert torch.equal(drawn(denoiser, inputs), expected)


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
