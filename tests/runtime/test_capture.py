import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from mixdq.runtime.capture import Call, CudaRecorder, fresh, repeatable, signature_of

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def doubled(x: Tensor, *, more: dict[str, Any], times: int = 1) -> dict[str, Any]:
    """Returns its own memory too, which callers must not be given."""
    return {"sum": [2 * times * x + more["y"]], "same": x, "word": "word"}


def flat(x: Tensor, **more: Any) -> tuple[list[Any], Any]:
    return tree_flatten(((x,), more))


def test_a_call_is_run_and_run_again_from_buffers_of_its_own(tape: Any) -> None:
    x, y = torch.randn(2, 3).t(), torch.randn(1, 2).expand(3, 2)
    leaves, form = flat(x, more={"y": y}, times=3)
    with torch.inference_mode():
        call = Call(doubled, leaves, form, tape(torch.device("cpu")))
        first = call.recorder.run(lambda: call.run(leaves))
    with torch.no_grad():
        call.capture()
        for scale in (1.0, 2.0):
            leaves, _ = flat(scale * x, more={"y": scale * y}, times=3)
            again = call.recorder.run(lambda given=leaves: call.again(given))
            assert torch.equal(again["sum"][0], scale * first["sum"][0])
            assert torch.equal(again["same"], scale * x)
            assert again["word"] == "word"
            again["same"].zero_()
    assert torch.equal(first["same"], x)


def test_signatures_tell_shapes_strides_types_and_values_apart() -> None:
    x = torch.ones(2, 2, 2)
    others = [x[:1], x.transpose(0, 1), x.half(), x.to("meta")]
    calls = [flat(one) for one in (x, *others)]
    calls += [flat(x, a=1), flat(x, a=1.0), flat(x, a=True), flat(x, a=None), flat(x, b=1), flat(x, a=[1])]
    signatures = [signature_of(*one) for one in calls]
    assert [signatures.index(one) for one in signatures] == list(range(len(calls)))
    assert signature_of(*flat(x.clone() + 1)) == signatures[0]


def test_fresh_tensors_share_no_memory() -> None:
    x = torch.ones(2)
    copies = fresh({"a": [x, 1], "b": (x[:1],)})
    x.zero_()
    assert copies["a"][0].tolist() == [1.0, 1.0]
    assert copies["b"][0].tolist() == [1.0]


def holder() -> tuple[Callable[[], Tensor], "weakref.ref[nn.Module]"]:
    """A call, and the module that nobody but it knows."""
    model = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    return lambda: model(x), weakref.ref(model)


def test_what_is_repeatable_keeps_its_call_and_reads_new_numbers(tape: Any) -> None:
    call, model = holder()
    with torch.no_grad():
        again = repeatable(call, tape(torch.device("cpu")))
        del call
        gc.collect()
        model().bias.add_(1.0)
        assert torch.equal(again(), model()(torch.ones(1, 2)))
    assert (tape.records, tape.replays) == (1, 1)


def test_what_cannot_be_recorded_is_not_repeatable(tape: Any) -> None:
    runs: list[float] = []
    with pytest.raises(RuntimeError, match="not permitted"):
        repeatable(lambda: runs.append(float(torch.ones(2).sum())), tape(torch.device("cpu")))
    assert runs == [2.0, 2.0]


@on_a_gpu
def test_a_graph_gives_what_its_call_gives_on_any_stream() -> None:
    recorder = CudaRecorder(torch.device("cuda", 0))
    with torch.no_grad():
        leaves, form = flat(torch.randn(4, device="cuda"), more={"y": torch.randn(4, device="cuda")})
        call = Call(doubled, leaves, form, recorder)
        recorder.run(lambda: call.run(leaves))
        call.capture()
        for _ in range(3):
            x = torch.randn(4, device="cuda")
            torch.cuda.synchronize()
            with torch.cuda.stream(torch.cuda.Stream()):
                y = torch.randn(4, device="cuda")
                found = recorder.run(lambda given=[x, y]: call.again(given))
                assert torch.equal(found["sum"][0], 2 * x + y)


@on_a_gpu
def test_after_a_capture_that_failed_another_one_works_and_memory_comes_back() -> None:
    recorder = CudaRecorder(torch.device("cuda", 0))
    x = torch.ones(1 << 20, device="cuda")
    with torch.no_grad():
        for _ in range(2):
            with pytest.raises(RuntimeError):
                recorder.record(lambda: float((x + 1).sum()))
            replay, y = recorder.record(lambda: x + 1)
            replay()
            assert float(y.sum()) == 2.0 * x.numel()
            del replay, y
            torch.cuda.empty_cache()
            held = torch.cuda.memory_reserved()
    assert torch.cuda.memory_reserved() <= held
