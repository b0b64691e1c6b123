import pytest
import torch
from torch import nn

from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.layers import list_layers
from mixdq.pipeline.prefix import Prefix, record_prefix, resumed
from mixdq.pipeline.trace import DenoiserCall, record_calls, replay
from mixdq.testing import fingerprint, tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline

BUILDERS = [tiny_sdxl_pipeline, tiny_sd_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline]
LARGE = 2**30


@pytest.mark.parametrize("build", BUILDERS)
def test_a_changed_layer_gives_the_same_bits_with_and_without_replay(build) -> None:
    pipe = build()
    family, spec = find_family(pipe), GenerationSpec(height=16, width=16)
    denoiser = family.denoiser(pipe)
    names = [layer.name for layer in list_layers(pipe, family, spec, model="tiny")]
    (call,) = record_calls(pipe, family, ["a cat", "a dog"], spec).calls
    before = fingerprint(denoiser)
    prefix = record_prefix(denoiser, call, names, limit=LARGE)
    assert fingerprint(denoiser) == before
    ran: list[str] = []
    saved = 0
    handles = [
        denoiser.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name)) for name in names
    ]
    for name in names:
        weight = denoiser.get_submodule(name).weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(1.1)
        whole = replay(denoiser, call)
        ran.clear()
        with resumed(denoiser, prefix, name):
            part = replay(denoiser, call)
            saved += len(names) - len(ran)
            again = replay(denoiser, call)
        assert torch.equal(part, whole), name
        assert torch.equal(again, whole), "later calls are whole"
        with torch.no_grad():
            weight.copy_(kept)
    for handle in handles:
        handle.remove()
    assert fingerprint(denoiser) == before
    assert saved > 0.25 * len(names) ** 2


class Blocks(nn.Module):
    """Four blocks in a row, of which the third may misbehave."""

    def __init__(self, third: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(4))
        self.third = third

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        for number, block in enumerate(self.blocks):
            x = self.third(block, x) if self.third is not None and number == 2 else block(x)
        return (x,)


class WritesIntoItsInput(nn.Module):
    def forward(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return block(x.mul_(2.0))


class RunsTwice(nn.Module):
    def forward(self, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return block(block(x))


def recorded(model: Blocks, limit: int) -> Prefix:
    x = torch.randn(2, 4)
    with torch.no_grad():
        call = DenoiserCall(args=(x.clone(),), kwargs={}, output=model(x.clone())[0])
    return record_prefix(model, call, [f"blocks.{number}.0" for number in range(4)], limit=limit)


@pytest.mark.parametrize(
    ("third", "limit", "expected"),
    [
        (None, LARGE, {"blocks.0", "blocks.1", "blocks.2"}),
        (None, 2 * 32, {"blocks.0", "blocks.1"}),
        (None, 0, set()),
        (WritesIntoItsInput(), LARGE, {"blocks.0", "blocks.2"}),
        (RunsTwice(), LARGE, {"blocks.0", "blocks.1"}),
    ],
)
def test_only_blocks_that_fit_ran_once_and_are_written_to_by_nobody_are_recorded(third, limit, expected) -> None:
    prefix = recorded(Blocks(third), limit)
    assert set(prefix.before("blocks.3.0")) == expected
    assert set(prefix.before("blocks.1.0")) <= {"blocks.0"}
    assert not prefix.before("a layer that never ran")


def test_the_model_is_given_back_when_a_call_fails() -> None:
    model = Blocks()
    prefix = recorded(model, LARGE)
    before = fingerprint(model)
    with pytest.raises(RuntimeError, match="shapes"), resumed(model, prefix, "blocks.3.0"):
        model.blocks[3](torch.zeros(2, 5))
    assert fingerprint(model) == before
