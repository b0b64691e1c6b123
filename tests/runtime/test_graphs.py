import copy
import gc
import inspect
import logging
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from mixdq.errors import ConfigError
from mixdq.runtime.graphs import MOST_GRAPHS, Graphs, remove_graphs, use_graphs
from mixdq.testing import (
    TOKENS,
    tiny_flux_pipeline,
    tiny_sd3_pipeline,
    tiny_sd_pipeline,
    tiny_sdxl_pipeline,
)

Model = Any
Change = Callable[[Model], None]


def test_every_input_is_heard_and_outputs_are_exact(calls: Any, graphed: Model, plain: Model, tape: Any) -> None:
    for seed in range(3):
        calls.same(graphed, plain, seed)
    given = calls.inputs(3)
    for name, value in calls.inputs(4).items():
        for changed in [given | {name: value}, given]:
            assert torch.equal(graphed(**changed).sample, plain(**changed).sample)
    assert not torch.equal(plain(**given | {"timestep": calls.inputs(4)["timestep"]}).sample, plain(**given).sample)
    assert (tape.records, tape.replays) == (1, 9)


@pytest.mark.parametrize(
    "kind", [int, float, torch.tensor, lambda t: torch.tensor([t])], ids=["int", "float", "scalar", "vector"]
)
@pytest.mark.parametrize("by_name", [True, False])
def test_timesteps_of_every_kind_are_heard_with_one_capture(
    calls: Any, graphed: Model, plain: Model, tape: Any, kind: Callable[[int], Any], by_name: bool
) -> None:
    found = []
    for timestep in (999, 749, 499, 249):
        given = calls.inputs(0) | {"timestep": kind(timestep)}
        args = [] if by_name else [given.pop("sample"), given.pop("timestep")]
        found.append(graphed(*args, **given).sample)
        assert torch.equal(found[-1], plain(*args, **given).sample)
    assert not torch.equal(found[2], found[3])
    assert (tape.records, tape.replays) == (1, 2)


def test_outputs_are_fresh_and_of_the_structure_asked_for(calls: Any, graphed: Model, plain: Model) -> None:
    for return_dict in (True, False):
        outputs = [graphed(**calls.inputs(seed), return_dict=return_dict) for seed in range(4)]
        expected = [plain(**calls.inputs(seed), return_dict=return_dict) for seed in range(4)]
        assert {type(one) for one in outputs} == {type(one) for one in expected}
        for one, other in zip(outputs, expected, strict=True):
            assert torch.equal(one[0], other[0])


def test_a_caller_in_inference_mode_may_follow_one_that_is_not(
    calls: Any, graphed: Model, plain: Model, tape: Any
) -> None:
    calls.capture(graphed)
    with torch.inference_mode():
        calls.same(graphed, plain)
    calls.same(graphed, plain)
    assert tape.replays == 2


@pytest.mark.parametrize("make", [tiny_sd_pipeline, tiny_sdxl_pipeline, tiny_flux_pipeline, tiny_sd3_pipeline])
def test_pipelines_draw_what_they_draw_without(make: Callable[[], Any], tape: Any) -> None:
    pipe = make()
    denoiser = pipe.components.get("unet") or pipe.transformer

    def draw() -> list[Tensor]:
        return [
            pipe(prompt, num_inference_steps=4, height=16, width=16, output_type="pt", generator=torch.manual_seed(i))[
                0
            ]
            for i, prompt in enumerate(["a red apple", "a boat", "a boat"])
        ]

    expected = draw()
    use_graphs(denoiser, tape)
    assert all(map(torch.equal, draw(), expected))
    assert tape.records >= 1
    assert tape.replays >= 8
    remove_graphs(denoiser)


def test_compiled_blocks_are_in_graphs(calls: Any, graphed: Model, plain: Model, tape: Any) -> None:
    torch._dynamo.reset()
    graphed.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    for seed in range(3):
        torch.testing.assert_close(graphed(**calls.inputs(seed)).sample, plain(**calls.inputs(seed)).sample)
    assert (tape.records, tape.replays) == (1, 1)
    torch._dynamo.reset()


def test_an_error_of_the_denoiser_is_its_own_and_leaves_no_trace(calls: Any, graphed: Model, plain: Model) -> None:
    wrong = calls.inputs(0) | {"encoder_hidden_states": torch.randn(1, TOKENS, 5)}
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            graphed(**wrong)
    for seed in range(3):
        calls.same(graphed, plain, seed)


def test_as_many_shapes_as_may_be_are_kept_those_used_last(calls: Any, graphed: Model, plain: Model, tape: Any) -> None:
    sizes = [{"batch": batch, "side": side} for side in (8, 16, 4) for batch in (1, 2, 3)]
    assert len(sizes) == MOST_GRAPHS + 1
    for size in sizes:
        for seed in range(3):
            calls.same(graphed, plain, seed, **size)
        # Used again and again, it is never the oldest.
        calls.same(graphed, plain, 5, **sizes[0])
    assert tape.records == len(sizes)
    for size in (sizes[0], *sizes[2:]):
        calls.same(graphed, plain, 6, **size)
    assert tape.records == len(sizes)
    for seed in range(2):
        calls.same(graphed, plain, seed, **sizes[1])
    assert tape.records == len(sizes) + 1


def held(model: Model) -> list[weakref.ref[Any]]:
    return [weakref.ref(one) for one in model.forward._calls]


@pytest.mark.parametrize("way", [remove_graphs, lambda model: model.to("cpu"), lambda model: model.float()])
def test_removed_or_moved_it_lets_all_graphs_go(calls: Any, way: Change, graphed: Model, plain: Model) -> None:
    calls.capture(graphed)
    (call,) = held(graphed)
    way(graphed)
    gc.collect()
    assert call() is None
    calls.same(graphed, plain)


def test_removed_it_is_what_it_was_and_used_twice_is_used_once(
    calls: Any, graphed: Model, plain: Model, tape: Any
) -> None:
    calls.capture(graphed)
    use_graphs(graphed, tape)
    calls.same(graphed, plain)
    assert tape.records == 1
    assert list(graphed.state_dict()) == list(plain.state_dict())
    assert inspect.signature(graphed.forward) == inspect.signature(plain.forward)
    for _ in range(2):
        remove_graphs(graphed)
        assert vars(graphed).keys() == vars(plain).keys()
        calls.same(graphed, plain)
    assert tape.replays == 1


def test_removed_while_something_wraps_it_it_stays_away(calls: Any, graphed: Model, plain: Model, tape: Any) -> None:
    calls.capture(graphed)
    accelerate.cpu_offload_with_hook(graphed, "cpu")
    with pytest.raises(ConfigError, match="UNet2DConditionModel is offloaded"):
        use_graphs(graphed, tape)
    remove_graphs(graphed)
    calls.same(graphed, plain)
    accelerate.hooks.remove_hook_from_module(graphed)
    for seed in range(3):
        calls.same(graphed, plain, seed)
    assert tape.replays == 0
    use_graphs(graphed, tape)
    for seed in range(3):
        calls.same(graphed, plain, seed)
    assert tape.replays == 1


def test_copies_have_graphs_of_their_own(calls: Any, graphed: Model, plain: Model, tape: Any) -> None:
    calls.capture(graphed)
    twin = copy.deepcopy(graphed)
    assert held(twin) == []
    twin.conv_in.weight.mul_(2)
    for seed in range(3):
        calls.same(graphed, plain, seed)
    plain.conv_in.weight.mul_(2)
    for seed in range(3):
        calls.same(twin, plain, seed)
    assert tape.records == 2


def test_it_is_pickled_and_saved_as_without(calls: Any, graphed: Model, plain: Model, tape: Any, tmp_path: Any) -> None:
    calls.capture(graphed)
    graphed.save_pretrained(tmp_path)
    opened = UNet2DConditionModel.from_pretrained(tmp_path)
    assert not isinstance(opened.forward, Graphs)
    calls.same(opened, plain)
    use_graphs(opened)
    again = pickle.loads(pickle.dumps(opened))
    assert again.forward._denoiser is again
    calls.same(again, plain)


def test_hooks_on_the_denoiser_itself_are_called_every_time(calls: Any, graphed: Model, tape: Any) -> None:
    seen = []
    graphed.register_forward_pre_hook(lambda module, args, kwargs: seen.append(1), with_kwargs=True)
    graphed.register_forward_hook(lambda module, args, output: seen.append(2))
    for seed in range(4):
        graphed(**calls.inputs(seed))
    assert seen == [1, 2] * 4
    assert tape.replays == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_it_captures_and_gives_the_same(calls: Any, unet: Model, caplog: pytest.LogCaptureFixture) -> None:
    def moved(given: Any) -> Any:
        return {k: moved(v) for k, v in given.items()} if isinstance(given, dict) else given.cuda()

    caplog.set_level(logging.WARNING)
    plain, graphed = (copy.deepcopy(unet).cuda() for _ in range(2))
    use_graphs(graphed)
    for scale in (1, 2):
        for model in (plain, graphed):
            model.conv_in.weight = nn.Parameter(model.conv_in.weight * scale, requires_grad=False)
        for seed in range(5):
            for given in (moved(calls.inputs(seed)), moved(calls.inputs(seed)) | {"timestep": 100 * seed * scale}):
                torch.testing.assert_close(graphed(**given).sample, plain(**given).sample)
    assert [call.replay is None for call in graphed.forward._calls] == [False]
    assert not caplog.records
    remove_graphs(graphed)
