"""Offloading: the model, its layers one by one, or groups of them come to the device only when they run."""

from typing import Any

import accelerate
import pytest
import torch

WAYS = ["model", "sequential", "group, leaves", "group, blocks", "group, leaves, stream"]


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU to offload from")
    return str(request.param)


@pytest.mark.parametrize("way", WAYS)
def test_offloaded_models_compute_the_same_every_time(subject: Any, device: str, way: str) -> None:
    if device == "cuda" and subject.backend == "cpu":
        pytest.skip("the CPU's kernels do not run on a GPU")
    if device == "cpu" and "stream" in way:
        pytest.skip("a CPU has no streams")
    model = subject.open()
    expected = subject.expected() if device == "cpu" else subject.run(subject.open().to(device), device)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    offload(model, way, torch.device(device))
    for _ in range(2):
        assert torch.equal(subject.run(model, device), expected)
    if way != "sequential":
        assert all(torch.equal(tensor.cpu(), state[name]) for name, tensor in model.state_dict().items())


def offload(model: Any, way: str, device: torch.device) -> None:
    if way == "model":
        accelerate.cpu_offload_with_hook(model, device)
    elif way == "sequential":
        accelerate.cpu_offload(model, device, offload_buffers=True)
    else:
        blocks = {"offload_type": "block_level", "num_blocks_per_group": 1}
        model.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            use_stream="stream" in way,
            **(blocks if "blocks" in way else {"offload_type": "leaf_level"}),
        )
