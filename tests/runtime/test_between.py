import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from mixdq.runtime.between import CpuAttention, CpuGeglu, remove_cpu_kernels, use_cpu_kernels
from mixdq.runtime.kernels import native
from mixdq.testing import tiny_sdxl_pipeline

pytestmark = pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))


@pytest.fixture
def denoiser() -> nn.Module:
    module: nn.Module = tiny_sdxl_pipeline().unet.eval()
    return module


@torch.no_grad()
def drawn(denoiser: nn.Module, **more: object) -> torch.Tensor:
    config, generator = denoiser.config, torch.Generator().manual_seed(1)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    y: torch.Tensor = denoiser(
        torch.randn(2, config.in_channels, 16, 16, generator=generator),
        torch.tensor(500),
        torch.randn(2, 7, config.cross_attention_dim, generator=generator),
        added_cond_kwargs={"text_embeds": torch.randn(2, pooled, generator=generator), "time_ids": torch.ones(2, 6)},
        **more,
    ).sample
    return y


def kinds(denoiser: nn.Module) -> tuple[int, int]:
    processors = [getattr(module, "processor", None) for module in denoiser.modules()]
    gates = [module for module in denoiser.modules() if isinstance(module, CpuGeglu)]
    return sum(isinstance(processor, CpuAttention) for processor in processors), len(gates)


def test_a_denoiser_draws_the_same_and_keeps_its_weights_names(denoiser) -> None:
    before, names = drawn(denoiser), list(denoiser.state_dict())
    exchanged = use_cpu_kernels(denoiser)
    attentions, gates = kinds(denoiser)
    assert attentions == 2 * gates > 0
    assert exchanged == attentions + gates
    assert list(denoiser.state_dict()) == names
    torch.testing.assert_close(drawn(denoiser), before, rtol=1e-4, atol=1e-5)
    assert use_cpu_kernels(denoiser) == 0


def test_undone_all_is_as_it_was(denoiser) -> None:
    before, classes = drawn(denoiser), [type(module) for module in denoiser.modules()]
    exchanged = use_cpu_kernels(denoiser)
    assert remove_cpu_kernels(denoiser) == exchanged
    assert kinds(denoiser) == (0, 0)
    assert [type(module) for module in denoiser.modules()] == classes
    assert torch.equal(drawn(denoiser), before)


def test_masks_go_to_the_processor_that_was_there(denoiser) -> None:
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 5:] = False
    before = drawn(denoiser, encoder_attention_mask=mask)
    assert not torch.allclose(before, drawn(denoiser), atol=1e-4)
    use_cpu_kernels(denoiser)
    torch.testing.assert_close(drawn(denoiser, encoder_attention_mask=mask), before, rtol=1e-4, atol=1e-5)


def test_gradients_flow_where_they_are_asked_for(denoiser) -> None:
    use_cpu_kernels(denoiser)
    gate = next(module for module in denoiser.modules() if isinstance(module, CpuGeglu))
    x = torch.randn(2, 5, gate.proj.in_features, requires_grad=True)
    gate(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0.0).any())
    attn = next(module for module in denoiser.modules() if hasattr(module, "processor"))
    x = torch.randn(2, 5, attn.query_dim, requires_grad=True)
    attn(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0.0).any())


def test_a_gate_follows_a_projection_that_was_exchanged(denoiser) -> None:
    use_cpu_kernels(denoiser)
    gate = next(module for module in denoiser.modules() if isinstance(module, CpuGeglu))
    gate.proj = nn.Linear(gate.proj.in_features, gate.proj.out_features)
    assert len(list(gate.parameters())) == 2
    assert gate.restored().proj is gate.proj


def test_compiled_whole_it_draws_the_same(denoiser) -> None:
    use_cpu_kernels(denoiser)
    before = drawn(denoiser)
    whole = torch.compile(denoiser, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(drawn(whole), before, rtol=1e-4, atol=1e-5)


def test_pictures_stay_channels_last_throughout(denoiser) -> None:
    use_cpu_kernels(denoiser)
    denoiser.to(memory_format=torch.channels_last)
    orders: list[bool] = []
    for module in denoiser.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: orders.append(inputs[0].stride(1) == 1))
    drawn(denoiser)
    assert all(orders)
    assert len(orders) > 5


def test_a_processor_takes_what_the_one_it_replaced_takes(denoiser) -> None:
    attn = next(module for module in denoiser.modules() if hasattr(module, "processor"))
    before = inspect.signature(attn.processor.__call__)
    use_cpu_kernels(denoiser)
    assert isinstance(attn.processor, CpuAttention)
    assert list(inspect.signature(attn.processor.__call__).parameters) == list(before.parameters)


def test_a_processor_is_made_anew_by_its_class_and_copied(denoiser) -> None:
    # As diffusers does while it exchanges others.
    before = drawn(denoiser)
    use_cpu_kernels(denoiser)
    denoiser.set_attn_processor({name: type(each)() for name, each in denoiser.attn_processors.items()})
    assert all(isinstance(each, CpuAttention) for each in denoiser.attn_processors.values())
    twin = pickle.loads(pickle.dumps(copy.deepcopy(denoiser)))
    assert kinds(twin) == kinds(denoiser)
    torch.testing.assert_close(drawn(twin), before, rtol=1e-4, atol=1e-5)
