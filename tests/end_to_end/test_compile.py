"""A quantized denoiser under `torch.compile`, whole and block by block: no graph breaks, the same outputs."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import mixdq
from mixdq.conversion.convert import convert
from mixdq.metrics.sqnr import sqnr
from mixdq.runtime.kernels import native
from mixdq.runtime.layer import QuantizedLayer
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.plan import BitPlan, LayerBits

SIZES = ((1, 8, 8), (3, 16, 12), (1, 8, 8))
"""Batch, height and width of the latents of one call after another."""

Arguments = Callable[[int, int, int], dict[str, Any]]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_sdxl_pipeline()


@pytest.fixture(scope="module")
def arguments(pipe: Any) -> Arguments:
    """Return a function (batch, height, width) -> what the denoiser is called with, always the same."""
    text, _, pooled, _ = pipe.encode_prompt("a boat", device="cpu", do_classifier_free_guidance=False)

    def make(batch: int, height: int, width: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(batch * height * width)
        return {
            "sample": torch.randn(batch, 4, height, width, generator=generator),
            "timestep": torch.tensor(999),
            "encoder_hidden_states": text.expand(batch, -1, -1),
            "added_cond_kwargs": {
                "text_embeds": pooled.expand(batch, -1),
                "time_ids": torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]]).expand(batch, -1),
            },
        }

    return make


@pytest.fixture(scope="module")
def denoiser(pipe: Any) -> Any:
    """A quantized denoiser with BOS rows and skip parts that was never called."""
    bits, backend = ("W4A16", "reference") if native.trouble() else ("W4A8", "cpu")
    table, record = mixdq.inspect(pipe), mixdq.calibrate(pipe, ["a red apple", "a blue bird"])
    plan = BitPlan(name="uniform", layers={spec.name: LayerBits.parse(bits) for spec in table})
    unet = copy.deepcopy(pipe.unet)
    convert(unet, plan, table, record, backend=backend)
    layers = [module for module in unet.modules() if isinstance(module, QuantizedLayer)]
    assert any(layer.layout.bos for layer in layers)
    assert any(layer.layout.splits for layer in layers)
    return unet


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def outputs(model: Any, arguments: Arguments) -> list[Tensor]:
    return [model(**arguments(*size)).sample for size in SIZES]


def compilations(model: nn.Module, arguments: Arguments, *, whole: bool) -> tuple[list[Tensor], int]:
    """The outputs of a compiled copy, and how often something was compiled for them."""
    counter, model = CompileCounterWithBackend("aot_eager"), copy.deepcopy(model)
    if whole:
        model = torch.compile(model, backend=counter, fullgraph=True)
    else:
        model.compile_repeated_blocks(backend=counter, fullgraph=True)
    return outputs(model, arguments), counter.frame_count


def test_compiled_whole_without_a_graph_break_it_gives_the_same(denoiser: Any, arguments: Arguments) -> None:
    found, count = compilations(denoiser, arguments, whole=True)
    assert_same(found, denoiser, arguments)
    # Once, and once more for any batch and size.
    assert count <= 2


def test_compiled_block_by_block_it_shares_code_as_the_float_model_does(
    pipe: Any, denoiser: Any, arguments: Arguments
) -> None:
    found, count = compilations(denoiser, arguments, whole=False)
    assert_same(found, denoiser, arguments)
    torch._dynamo.reset()
    _, as_float = compilations(pipe.unet, arguments, whole=False)
    assert count == as_float


def test_inductor_changes_no_more_than_a_code_here_and_there(denoiser: Any, arguments: Arguments) -> None:
    model = copy.deepcopy(denoiser)
    model.compile_repeated_blocks(fullgraph=True)
    inputs = arguments(2, 8, 8)
    assert sqnr(copy.deepcopy(denoiser)(**inputs).sample, model(**inputs).sample) > 30.0


def test_a_foreign_first_token_is_told_by_compiled_code(denoiser: Any, arguments: Arguments) -> None:
    compiled, inputs = copy.deepcopy(denoiser), arguments(1, 8, 8)
    compiled.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    foreign = {**inputs, "encoder_hidden_states": torch.ones_like(inputs["encoder_hidden_states"])}
    with pytest.warns(UserWarning, match="first text token's state is not the one"):
        found = compiled(**foreign).sample
    assert sqnr(copy.deepcopy(denoiser)(**foreign).sample, found) > 40.0


def assert_same(found: list[Tensor], denoiser: nn.Module, arguments: Arguments) -> None:
    """Bit for bit where the CPU's integer kernels run.

    They write convolutions channels last in eager mode too. Elsewhere compiled code has another memory order, in which
    the layers between sum otherwise, and an input may fall on the other side of a code's border.
    """
    exact = all(layer.backend == "cpu" and not layer.layout.weight_only for layer in quantized_layers(denoiser))
    for one, other in zip(found, outputs(copy.deepcopy(denoiser), arguments), strict=True):
        assert torch.equal(one, other) if exact else sqnr(other, one) > 40.0


def quantized_layers(model: nn.Module) -> list[QuantizedLayer]:
    return [module for module in model.modules() if isinstance(module, QuantizedLayer)]
