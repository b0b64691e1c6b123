"""Calls that no graph can have: they run as ever, and the reason is told."""

import copy
import re
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn

from mixdq.errors import ConfigError
from mixdq.runtime.graphs import remove_graphs, use_graphs

Model = Any
Change = Callable[[Model], None]


def test_compiled_as_a_whole_it_has_no_graph_break_and_no_graph(tape: Any) -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 4), nn.SiLU()).eval()
    expected = model(torch.ones(1, 4))
    use_graphs(model, tape)
    model.compile(backend="eager", fullgraph=True)
    for _ in range(3):
        assert torch.equal(model(torch.ones(1, 4)), expected)
    assert tape.records == 0
    remove_graphs(model)
    with pytest.raises(ConfigError, match="compiled as a whole"):
        use_graphs(model, tape)
    torch._dynamo.reset()


class Counting(nn.Module):
    """Gives a number that no input tells."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Waiting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / float(x.abs().max())


class Unrecorded(nn.Module):
    """Fails while it is recorded alone."""

    def forward(self, x: Tensor) -> Tensor:
        mode = torch.utils._python_dispatch._get_current_dispatch_mode()
        if type(mode).__name__ == "_Noting":
            raise RuntimeError("CUDA error: out of patience")
        return x * 2


def with_activation(module: type[nn.Module]) -> Change:
    def change(model: Model) -> None:
        model.conv_act = module().eval()

    return change


def with_hook(model: Model) -> None:
    model.conv_out.register_forward_hook(lambda module, args, output: output + 1)


OBSTACLES = [
    (with_activation(Counting), "changes something in the denoiser"),
    (with_activation(Waiting), r"waits for the device \(aten._local_scalar_dense.default\)"),
    (with_activation(Unrecorded), r"cannot be captured \(CUDA error: out of patience\)"),
    (with_hook, "conv_out has hooks"),
    (lambda model: model.train(), "it is in training mode"),
    (lambda model: accelerate.cpu_offload_with_hook(model, "cpu"), "it is offloaded or cached"),
    (lambda model: accelerate.cpu_offload(model, torch.device("cpu")), "it is offloaded or cached"),
    (
        lambda model: model.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
        "conv_in is offloaded or cached",
    ),
]


@pytest.mark.parametrize(("change", "reason"), OBSTACLES)
def test_what_cannot_be_captured_runs_as_ever_and_is_told_once(
    calls: Any, change: Change, reason: str, graphed: Model, plain: Model, tape: Any, caplog: pytest.LogCaptureFixture
) -> None:
    calls.capture(graphed)
    for model in (graphed, plain):
        change(model)
    caplog.clear()
    for seed in range(5):
        calls.same(graphed, plain, seed)
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("mixdq")]
    assert re.search(f"^UNet2DConditionModel runs without a CUDA graph: .*{reason}", told)


CALLS = [
    ({"class_labels": object()}, torch.no_grad, "an argument is of type object"),
    ({"timestep_cond": torch.empty(1, 4, device="meta")}, torch.no_grad, "are on cpu, meta"),
    ({}, torch.enable_grad, r"call it under torch.no_grad\(\)"),
    ({}, lambda: torch.autocast("cpu"), "autocast is on"),
]


@pytest.mark.parametrize(("more", "context", "reason"), CALLS)
def test_what_a_call_asks_may_forbid_a_graph_too(
    calls: Any, more: dict[str, Any], context: Any, reason: str, graphed: Model, plain: Model, tape: Any, caplog: Any
) -> None:
    calls.capture(graphed)
    for model in (graphed, plain):
        model.time_embedding.cond_proj = None
    with context():
        for _ in range(2):
            found, expected = (outcome(model, calls.inputs(0) | more) for model in (graphed, plain))
            assert str(found) == str(expected)
    assert re.search(reason, caplog.text)
    assert len(caplog.records) == 1
    assert tape.replays == 0


def outcome(model: Model, given: dict[str, Any]) -> object:
    try:
        return model(**given).sample
    except (TypeError, NotImplementedError, RuntimeError) as error:
        return error


def test_on_a_cpu_a_denoiser_meant_for_a_gpu_runs_as_ever(
    calls: Any, plain: Model, caplog: pytest.LogCaptureFixture
) -> None:
    model = copy.deepcopy(plain)
    use_graphs(model)
    calls.same(model, plain)
    assert "the inputs should be on one device of type cuda, and are on cpu" in caplog.text
