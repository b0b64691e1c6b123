import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mixdq.errors import BosNotConstantError
from mixdq.quant.bos import MISFIT_LIMIT, BosRow
from mixdq.runtime.another_text import TextFollower, follow_text, leave_text
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.snapshot import Snapshot

Quantize = Callable[..., QuantizedLinear]

WIDTH = 9
STATE = torch.full((WIDTH,), 50.0)


class Denoiser(nn.Module):
    """Reads a picture before its text, and what the text made of it after."""

    def __init__(
        self, quantized: Quantize, bits: tuple[str, str, str], *, dynamic: bool = False, backend: str = "reference"
    ) -> None:
        super().__init__()
        self.first, self.to_k, self.last = (
            quantized(
                nn.Linear(WIDTH, WIDTH),
                width,
                bos=BosRow(input=STATE, output=torch.ones(WIDTH)) if i == 1 else None,
                dynamic=dynamic,
                backend=backend,
            )
            for i, width in enumerate(bits)
        )

    def forward(self, sample: Tensor, timestep: int, encoder_hidden_states: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(sample) + self.to_k(encoder_hidden_states).mean(1))
        return y


@pytest.fixture(params=[("W8A8", "W8A8", "W8A8"), ("W8A8", "W4A16", "W3A4")], ids="-".join)
def pair(request: pytest.FixtureRequest, quantized: Quantize) -> tuple[Denoiser, Denoiser]:
    """The same weights with static inputs and with dynamic ones."""
    static = []
    for dynamic in (False, True):
        torch.manual_seed(1)
        static.append(Denoiser(quantized, request.param, dynamic=dynamic))
        follow_text(static[-1])
    return static[0], static[1]


def text(first: Tensor) -> Tensor:
    states = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(2))
    states[:, 0] = first
    return states


def run(denoiser: nn.Module, first: Tensor) -> Tensor:
    sample = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y: Tensor = denoiser(sample, 1, encoder_hidden_states=text(first))
    return y


FOREIGN = torch.linspace(-40.0, 60.0, WIDTH)


@pytest.mark.filterwarnings("ignore:The first text token's state")
def test_another_text_is_computed_as_by_the_dynamic_model_and_the_own_as_before(
    pair: tuple[Denoiser, Denoiser],
) -> None:
    static, dynamic = pair
    saved = {name: tensor.clone() for name, tensor in static.state_dict().items()}
    own = run(static, STATE)
    assert not torch.equal(own, run(dynamic, STATE))
    for _ in range(2):
        for first in (FOREIGN, 2 * FOREIGN, FOREIGN + STATE):
            assert torch.equal(run(static, first), run(dynamic, first))
        assert torch.equal(run(static, STATE), own)
    run(static, FOREIGN)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in static.state_dict().items())


@pytest.mark.filterwarnings("ignore:The first text token's state")
def test_the_first_call_of_all_and_of_a_copy_are_like_any(pair: tuple[Denoiser, Denoiser]) -> None:
    static, dynamic = pair
    wanted = run(dynamic, FOREIGN)
    twin = copy.deepcopy(static)
    assert torch.equal(run(static, FOREIGN), wanted)
    # Neither knows of the other's texts.
    own = run(twin, STATE)
    assert torch.equal(run(static, FOREIGN), wanted)
    assert torch.equal(run(copy.deepcopy(static), STATE), own)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0 + 0.5 * MISFIT_LIMIT])
def test_multiples_of_the_stored_state_are_no_other_text(pair: tuple[Denoiser, Denoiser], factor: float) -> None:
    static, _ = pair
    run(static, factor * STATE)
    assert not static.to_k._at_run_time
    assert not static.last._at_run_time


def test_one_foreign_sample_is_enough(pair: tuple[Denoiser, Denoiser]) -> None:
    static, dynamic = pair
    mixed = torch.stack([STATE, FOREIGN])
    with pytest.warns(UserWarning, match="scaled at run time"):
        assert torch.equal(run(static, mixed), run(dynamic, mixed))


@pytest.mark.filterwarnings("ignore:The first text token's state")
def test_compiled_whole_it_refuses_another_text_that_no_other_call_has_seen(pair: tuple[Denoiser, Denoiser]) -> None:
    static, dynamic = pair
    torch._dynamo.reset()
    whole = torch.compile(static, backend="aot_eager", fullgraph=True)
    own = run(whole, STATE)
    with pytest.raises(BosNotConstantError, match="compiled as a whole"):
        run(whole, FOREIGN)
    assert torch.equal(run(whole, STATE), own)
    run(static, FOREIGN)
    assert torch.equal(run(whole, FOREIGN), run(dynamic, FOREIGN))
    torch._dynamo.reset()


def test_a_text_is_known_again_unless_it_was_written_to(pair: tuple[Denoiser, Denoiser]) -> None:
    static, _ = pair
    (follower,) = static._forward_pre_hooks.values()
    assert isinstance(follower, TextFollower)
    sample, own = torch.randn(2, WIDTH), text(STATE)

    def seen_after(states: Tensor) -> bool:
        static(sample, 1, states)
        return follower.has_seen(states)

    with torch.no_grad():
        assert not follower.has_seen(own)
        assert seen_after(own)
        assert not follower.has_seen(own.clone())
        assert not follower.has_seen(own[:])
        own[0, 0] += 1.0
        assert not follower.has_seen(own)
        assert seen_after(own)
        # Copies know of nothing, and can be saved.
        (twin,) = copy.deepcopy(static)._forward_pre_hooks.values()
        (loaded,) = pickle.loads(pickle.dumps(static))._forward_pre_hooks.values()
        assert not twin.has_seen(own)
        assert not loaded.has_seen(own)
        # The place of a text that is gone may be another's.
        other = text(STATE)
        assert seen_after(other)
        del other
        assert follower._seen.text is not None
        assert follower._seen.text() is None
    with torch.inference_mode():
        assert not seen_after(text(STATE))
    with torch.no_grad():
        assert seen_after(own)


def test_a_graph_does_not_depend_on_which_text_was_seen(pair: tuple[Denoiser, Denoiser]) -> None:
    static, _ = pair
    run(static, STATE)
    snapshot = Snapshot(static)
    (follower,) = static._forward_pre_hooks.values()
    follower(static, (), {"encoder_hidden_states": text(STATE)})
    assert snapshot.holds()
    follower(static, (), {"encoder_hidden_states": text(FOREIGN)})
    assert not snapshot.holds()


class Waiting(TorchDispatchMode):
    """Counts how often numbers leave the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += torch.Tag.data_dependent_output in func.tags
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_gpus_kernels_wait_for_the_device_once_a_text_at_most(quantized: Quantize, dynamic: bool) -> None:
    device = available.device_type()
    denoiser = Denoiser(quantized, ("W8A8", "W8A8", "W8A8"), dynamic=dynamic, backend="cuda").to(device)
    follow_text(denoiser)
    sample = torch.randn(2, WIDTH, device=device)
    with torch.no_grad():
        # Kernels are bound.
        denoiser(sample, 1, text(STATE).to(device))
        for states in (text(STATE).to(device), text(STATE).to(device)):
            for again in (False, True):
                with Waiting() as waiting:
                    denoiser(sample, 1, states)
                assert waiting.count == (0 if dynamic or (again and device == "cuda") else 1)


def test_where_nothing_is_static_or_stored_nothing_is_watched(pair: tuple[Denoiser, Denoiser]) -> None:
    static, dynamic = pair
    assert len(static._forward_pre_hooks) == 1
    assert not dynamic._forward_pre_hooks
    follow_text(static)
    assert len(static._forward_pre_hooks) == 1
    leave_text(static)
    assert not static._forward_pre_hooks
    assert not static._forward_pre_hooks_with_kwargs
