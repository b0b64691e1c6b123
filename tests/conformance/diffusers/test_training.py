"""Training adapters beside and before frozen quantized layers; the oracle is autograd on the dequantized model."""

from typing import Any

import torch
from torch import Tensor, nn


class Adapter(nn.Module):
    """A layer with a low-rank path beside it, as users write them."""

    def __init__(self, layer: Any, draw: torch.Generator) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(0.3 * torch.randn(4, layer.in_features, generator=draw))
        self.up = nn.Parameter(0.3 * torch.randn(layer.out_features, 4, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        beside = x @ self.down.to(x.dtype).T @ self.up.to(x.dtype).T
        return self.layer(x) + beside


def adapted(model: Any) -> list[nn.Parameter]:
    """Freeze a model and put adapters around the projections of its attention; return what is to be learnt."""
    model.requires_grad_(False)
    draw = torch.Generator().manual_seed(1)
    found = [name for name, _ in model.named_modules() if name.endswith((".to_q", ".to_k", ".to_v"))]
    for name in found:
        model.set_submodule(name, Adapter(model.get_submodule(name), draw))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradients(subject: Any, model: Any, learnt: list[nn.Parameter]) -> list[Tensor]:
    for parameter in learnt:
        parameter.grad = None
    model(**subject.inputs()).sample.square().mean().backward()
    assert all(parameter.grad is not None for parameter in learnt)
    return [parameter.grad.clone() for parameter in learnt if parameter.grad is not None]


def test_gradients_are_those_of_the_dequantized_model(weight_only: Any) -> None:
    quantized, floating = weight_only.open(), weight_only.open().dequantize()
    found = gradients(weight_only, quantized, adapted(quantized))
    expected = gradients(weight_only, floating, adapted(floating))
    for one, other in zip(found, expected, strict=True):
        # Sums of the same products in another order, through some dozens of layers.
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


def test_every_adapter_learns_and_no_code_changes(subject: Any) -> None:
    model = subject.open()
    learnt, before = adapted(model), subject.run(model)
    codes = {name: tensor.clone() for name, tensor in model.state_dict().items() if "weight" in name}
    assert all(torch.isfinite(grad).all() and grad.norm() > 0 for grad in gradients(subject, model, learnt))
    torch.optim.SGD(learnt, lr=0.1).step()
    assert not torch.equal(subject.run(model), before)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in codes.items())


def test_checkpointed_gradients_are_the_same(subject: Any) -> None:
    model = subject.open()
    learnt = adapted(model)
    model.train()
    expected = gradients(subject, model, learnt)
    model.enable_gradient_checkpointing()
    for one, other in zip(gradients(subject, model, learnt), expected, strict=True):
        assert torch.equal(one, other)


def test_mixed_precision_trains_too(subject: Any) -> None:
    model = subject.open()
    learnt = adapted(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.isfinite(grad).all() and grad.norm() > 0 for grad in gradients(subject, model, learnt))
