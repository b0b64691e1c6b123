import pytest
import torch
from torch import nn

from mixdq.calibration.bos import SharedState, bos_outputs
from mixdq.errors import BosNotConstantError, EmptyRangeError, NonFiniteError
from mixdq.types.layers import LayerSpec, LayerTable


def seen(*states: torch.Tensor) -> SharedState:
    shared = SharedState()
    for state in states:
        shared.see("to_k", state)
    return shared


def test_the_shared_state_is_the_first_one_and_zeros_are_passed_over() -> None:
    state = torch.randn(8)
    shared = seen(torch.zeros(2, 8), torch.stack([torch.zeros(8), state]), state[None])
    assert torch.equal(shared.result(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_of_the_dtype_is_no_difference(dtype: torch.dtype) -> None:
    state = torch.randn(64).to(dtype)
    nudged = torch.nextafter(state.float(), torch.full((64,), 9.0)).to(dtype)
    assert torch.equal(seen(state[None], nudged[None]).result(), state.float())


@pytest.mark.parametrize("change", [1.1, -1.0])
def test_another_state_is_refused_by_layer(change: float) -> None:
    state = torch.randn(8)
    with pytest.raises(BosNotConstantError, match="to_k: the first text token's state differs"):
        seen(state[None], state[None] * change)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_state_is_not_called_another_state(value: float) -> None:
    for states in ([torch.full((1, 8), value)], [torch.ones(1, 8), torch.full((1, 8), value)]):
        with pytest.raises(NonFiniteError, match="to_k: the first text token's state holds NaN") as caught:
            seen(*states)
        assert caught.value.where == "to_k"


def test_a_difference_within_one_batch_is_refused() -> None:
    with pytest.raises(BosNotConstantError):
        seen(torch.eye(2))


def test_an_outlier_in_common_hides_no_difference_in_half_precision() -> None:
    states = torch.randn(2, 1, 2048, generator=torch.Generator().manual_seed(0)) / 2
    states[..., 7] = 823.0
    with pytest.raises(BosNotConstantError):
        seen(*states.to(torch.bfloat16))


def test_layers_that_read_different_embeddings_are_refused() -> None:
    with pytest.raises(BosNotConstantError, match="another text embedding"):
        seen(torch.ones(1, 8), torch.ones(1, 4))


def test_without_any_state_there_is_nothing_to_share() -> None:
    with pytest.raises(EmptyRangeError):
        seen(torch.zeros(2, 8)).result()


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_those_of_the_layer_in_its_own_dtype(bias: bool) -> None:
    denoiser = nn.ModuleDict({"to_k": nn.Linear(4, 3, bias=bias), "other": nn.Linear(4, 3)}).to(torch.bfloat16)
    layers = tuple(
        LayerSpec(name=name, op="linear", group="content", weight_shape=(3, 4), input_numel=8, macs=24, bos=bos)
        for name, bos in (("to_k", True), ("other", False))
    )
    state = torch.randn(4)
    outputs = bos_outputs(denoiser, LayerTable(model="m", family="f", digest="d", layers=layers), state)
    assert outputs.keys() == {"to_k"}
    with torch.no_grad():
        expected = denoiser["to_k"](state.to(torch.bfloat16)[None])[0]
    assert torch.equal(outputs["to_k"], expected.float())
    assert not outputs["to_k"].requires_grad
