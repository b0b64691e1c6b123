from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mixdq.runtime.obstacles import Waits, obstacle_of_call, obstacle_of_denoiser

CPU = torch.device("cpu")
X = torch.arange(6.0).reshape(2, 3)

WAITING: list[tuple[Callable[[Tensor], object], str]] = [
    (lambda x: x.sum().item(), "_local_scalar_dense"),
    (lambda x: bool((x > 0).all()), "_local_scalar_dense"),
    (lambda x: torch.equal(x, x), "equal"),
    (lambda x: x.nonzero(), "nonzero"),
    (lambda x: x[x > 1], "index|nonzero"),
    (lambda x: x.unique(), "_unique2"),
    (lambda x: x.to("meta"), "_to_copy"),
    (lambda x: torch.empty(3, device="meta").copy_(x[0]), "copy_"),
]


@pytest.mark.parametrize(("call", "name"), WAITING)
def test_what_waits_is_found(call: Callable[[Tensor], object], name: str) -> None:
    with Waits(CPU) as waits:
        call(X)
    assert any(f"aten.{each}" in one for one in waits.found for each in name.split("|"))


def test_what_does_not_wait_is_not_found_nor_what_another_device_does() -> None:
    layer = nn.Conv2d(2, 2, 1)
    with Waits(CPU) as waits:
        y = nn.functional.silu(layer(X.reshape(1, 2, 1, 3))) + torch.arange(3) * torch.tensor(2.0)
        y.copy_(y.half()).add_(1).view(-1)[1:].clone().to(torch.float64)
        torch.nn.functional.scaled_dot_product_attention(*[torch.ones(1, 1, 2, 4)] * 3)
    assert not waits.found
    with Waits(torch.device("meta")) as waits:
        X.sum().item()
    assert not waits.found


def test_a_plain_call_has_no_obstacle() -> None:
    with torch.no_grad():
        leaves = [X, None, 1.5, True, "word", torch.float16, nn.Parameter(X)]
        assert obstacle_of_call(leaves, "cpu") is None
        assert "of type cuda, and are on cpu" in str(obstacle_of_call(leaves, "cuda"))
        assert "are on none" in str(obstacle_of_call([1], "cpu"))
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        try:
            assert "hooks on all modules" in str(obstacle_of_call(leaves, "cpu"))
        finally:
            handle.remove()
    assert "no_grad" in str(obstacle_of_call(leaves, "cpu"))


def test_weights_elsewhere_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")).eval()
    assert obstacle_of_denoiser(model[:1].eval(), CPU) is None
    assert obstacle_of_denoiser(model, CPU) == "1 is on meta, and the inputs on cpu"
    model.register_forward_hook(lambda *_: None)
    assert obstacle_of_denoiser(model.to_empty(device="cpu"), CPU) is None
    model[0].register_forward_pre_hook(lambda *_: None)
    assert obstacle_of_denoiser(model, CPU) == "0 has hooks, which a graph would not call"
    assert "training mode" in str(obstacle_of_denoiser(model.train(), CPU))
