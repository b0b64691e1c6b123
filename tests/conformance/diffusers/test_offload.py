"""Offloading: the model, its layers one by one, or groups of them come to the device only when they run."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import UNet2DConditionModel

from mixdq.integrations.diffusers import MixDQConfig
from mixdq.runtime.kernels.gpu import available

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


@pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))
@pytest.mark.parametrize("way", WAYS)
def test_offloaded_the_gpus_kernels_compute_the_same_every_time(tmp_path: Path, way: str) -> None:
    if available.interpreted() and way != "sequential":
        pytest.skip("takes long in the interpreter")
    device = available.device_type()
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=2,
        block_out_channels=(4,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=6,
        norm_num_groups=2,
        use_linear_projection=True,
    ).save_pretrained(tmp_path)
    recipe = MixDQConfig(weight_bits=4, activation_bits=8, activations="dynamic", backend="cuda")
    sample, text = torch.randn(1, 4, 2, 2, device=device), torch.randn(1, 3, 6, device=device)
    outputs = []
    for offloaded in (False, True):
        model = UNet2DConditionModel.from_pretrained(tmp_path, quantization_config=recipe)
        if offloaded:
            offload(model, way, torch.device(device))
        else:
            model = model.to(device)
            # Hooks on a layer, which these ways set, have norms computed by themselves, to another last bit.
            watched = list(model.modules())[1:] if way == "sequential" or "leaves" in way else []
            for module in watched:
                module.register_forward_hook(lambda *_: None)
        with torch.no_grad():
            outputs += [model(sample, 7, text).sample for _ in range(1 + offloaded)]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


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
