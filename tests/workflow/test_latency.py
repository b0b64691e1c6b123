import itertools
import time
from dataclasses import replace

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mixdq.allocation import joint
from mixdq.errors import ArtifactError, StaleArtifactError
from mixdq.evaluation.latency import LayerTimes
from mixdq.evaluation.pace import Pace
from mixdq.runtime.capture import CudaRecorder
from mixdq.runtime.kernels.gpu import tuning
from mixdq.store.latency_file import read_latency, write_latency
from mixdq.store.table_file import read_layers
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.latency import LatencyTable
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import BitPlan, LayerBits
from mixdq.types.tensors import CalibrationRecord
from mixdq.workflow import planning, steps
from mixdq.workflow.doctor import machine_facts
from mixdq.workflow.latency import FLOAT, REPEATS, latency_table, table_of_times
from mixdq.workflow.origins import latency_origin
from mixdq.workflow.session import Session
from mixdq.workflow.settings import with_budget


@pytest.fixture
def timed(run):
    steps.time_layers(run)
    return run


def test_every_layer_is_timed_at_every_pair_it_may_get(timed) -> None:
    latency, table = read_latency(timed.paths.root / "latency.json"), read_layers(timed.paths.layers)
    assert list(latency.layers) == [layer.name for layer in table]
    # Weights of 4 and 8 bits, inputs of 8 and 16; or nothing quantized.
    assert all(set(times) == {"W4A8", "W8A8", "W4A16", "W8A16", "W16A16"} for times in latency.layers.values())
    assert all(0.0 < one < 1000.0 for times in latency.layers.values() for one in times.values())
    assert 0.0 < latency.rest < 1000.0
    assert "torch" in latency.machine


def test_a_table_on_file_is_not_measured_again_and_the_model_is_whole_afterwards(timed) -> None:
    before = (timed.paths.root / "latency.json").read_bytes()
    steps.time_layers(timed)
    assert (timed.paths.root / "latency.json").read_bytes() == before
    assert type(timed.family.denoiser(timed.pipe).conv_in).__name__ == "Conv2d"


def test_a_table_of_another_machine_is_measured_again_and_allocated_from_all_the_same(run, caplog) -> None:
    path, table, here = run.paths.root / "latency.json", read_layers(run.paths.layers), machine_facts()
    times = dict.fromkeys(("W4A8", "W8A8", "W4A16", "W8A16"), 1.0)
    there = LatencyTable(
        layers={layer.name: times for layer in table},
        rest=123.0,
        machine={**here, "threads": "1024"},
        origin=latency_origin(run, table),
    )
    write_latency(path, replace(there, machine={**here, "torch": "another"}))
    assert steps.time_layers(run).rest == 123.0
    write_latency(path, there)
    run.config = with_budget(run.config, latency_ms=1e6)
    assert planning.allocate(run)
    assert steps.time_layers(run).rest != 123.0
    assert f"not of this machine: threads was 1024, is {here['threads']}" in caplog.text
    assert read_latency(path).machine == here


def test_a_budget_of_time_is_met_as_the_table_has_it(timed) -> None:
    latency = read_latency(timed.paths.root / "latency.json")
    fast, slow = (latency.rest + sum(pick(times.values()) for times in latency.layers.values()) for pick in (min, max))
    limit = (fast + slow) / 2
    timed.config = with_budget(timed.config, latency_ms=limit)
    (plan,) = planning.allocate(timed)
    assert timed.config.allocation.program == "joint"
    assert plan.budget.latency_ms == limit
    assert plan.solver.values["latency_ms"] == latency.of(plan) <= limit
    assert plan.solver.gap <= joint.LATENCY_GAP
    assert plan.origin["latency"]


def test_a_layer_that_integers_do_not_make_faster_is_not_converted(run) -> None:
    table = read_layers(run.paths.layers)
    times = dict.fromkeys(("W4A8", "W8A8", "W4A16", "W8A16"), 1.0) | {"W16A16": 3.0}
    slow = {"conv_in": dict.fromkeys(times, 3.0) | {"W16A16": 1.0}}
    limit = float(len(table.layers))
    write_latency(
        run.paths.root / "latency.json",
        LatencyTable(
            layers={layer.name: times for layer in table} | slow,
            rest=0.0,
            machine=machine_facts(),
            origin=latency_origin(run, table),
        ),
    )
    run.config = with_budget(run.config, latency_ms=limit, activation_bits=16.0)
    planning.allocate(run)
    steps.choose(run)
    receipt = {layer.layer: layer for layer in steps.apply(run).layers}
    assert (receipt["conv_in"].bits, receipt["conv_in"].backend) == (FLOAT, None)
    assert all(layer.backend for name, layer in receipt.items() if name != "conv_in")
    pipe = DiffusionPipeline.from_pretrained(run.variant.model)
    assert type(pipe.unet.conv_in) is nn.Conv2d
    assert type(pipe.unet.conv_out) is not nn.Conv2d


def test_one_pair_for_all_layers_is_foretold_what_it_took_whatever_lay_between_them() -> None:
    eight, four = LayerBits(weight=8, activation=8), LayerBits(weight=4, activation=8)
    found = {
        FLOAT: LayerTimes(layers={"a": 50.0, "b": 0.0}, whole=51.0),
        eight: LayerTimes(layers={"a": 10.0, "b": 30.0}, whole=47.0),
        four: LayerTimes(layers={"a": 5.0, "b": 35.0}, whole=43.0),
    }
    latency = table_of_times(found, {"a": (eight, four), "b": (eight, four)}, scale=2.0)
    for bits in (eight, four):
        plan = BitPlan(name="one pair", layers=dict.fromkeys("ab", bits))
        assert latency.of(plan) == pytest.approx(2.0 * found[bits].whole)
    # Of what lay between the layers with 8 bits, three quarters are the second layer's.
    assert latency.of(BitPlan(name="mixed", layers={"a": four, "b": eight})) == pytest.approx(2.0 * (3.0 + 5.0 + 33.0))
    assert table_of_times({FLOAT: found[FLOAT]}, {"a": (FLOAT,), "b": (FLOAT,)}).rest == 1.0


TIMES = st.floats(0.0, 100.0)


@given(st.lists(st.tuples(TIMES, TIMES, TIMES, TIMES), min_size=2, max_size=3))
def test_put_equally_what_lies_between_leaves_layers_their_own_times(numbers) -> None:
    bits = [FLOAT, LayerBits(weight=8, activation=8), LayerBits(weight=4, activation=8)][: len(numbers)]
    found = {
        one: LayerTimes(layers={"a": a, "b": b, "kept": kept}, whole=whole)
        for one, (a, b, kept, whole) in zip(bits, numbers, strict=True)
    }
    latency = table_of_times(found, {"a": bits, "b": bits, "kept": (FLOAT,)}, scale=2.0, equally=True)
    kept = found[FLOAT].layers["kept"]
    assert latency.layers["kept"] == {"W16A16": 2.0 * kept}
    for one, times in found.items():
        table = latency.layers["a"][str(one)], latency.layers["b"][str(one)]
        # No layer gets another's time, and launches by chance scale none.
        assert table[0] - table[1] == pytest.approx(2.0 * (times.layers["a"] - times.layers["b"]))
        plan = BitPlan(name="one pair", layers={"a": one, "b": one, "kept": FLOAT})
        whole = max(times.whole, sum(times.layers.values()))
        assert latency.of(plan) == pytest.approx(2.0 * (whole - times.layers["kept"] + kept))
        assert min(table) >= 2.0 * min(times.layers.values()) >= 0.0


def latency_of(load, pairs, pace, *, device="cpu", **settings) -> LatencyTable:
    """The table of denoisers whose one `layer` has two inputs and two outputs."""
    spec = LayerSpec(name="layer", op="linear", group="quality", weight_shape=(2, 2), input_numel=2, macs=4)
    x = torch.ones(1, 2, device=device)
    with torch.no_grad():
        return latency_table(
            load,
            lambda denoiser: denoiser(x),
            LayerTable(model="m", family="sdxl", digest="d", layers=(spec,)),
            CalibrationRecord(ranges={}, bos_input=None, bos_outputs={}),
            {"layer": pairs},
            pace,
            **settings,
        )


class Slow(nn.Module):
    """A denoiser of one layer, which takes a clock's ticks to be launched and none to be run."""

    def __init__(self, ticks) -> None:
        super().__init__()
        self.ticks, self.layer = ticks, nn.Linear(2, 2)

    def forward(self, x):
        for _ in range(30):
            next(self.ticks)
        return self.layer(x)


class Player:
    """Records what its device, a CPU, does again in three ticks."""

    device_type = "cpu"

    def __init__(self, device) -> None:
        self.device = device

    def run(self, call):
        return call()

    def record(self, call):
        ticks = call.args[0].ticks
        return lambda: [next(ticks) for _ in range(3)], None


class Refuser(Player):
    def record(self, call):
        raise RuntimeError("operation not permitted when\n stream is capturing")


@pytest.mark.parametrize(("recorder", "rest"), [(CudaRecorder, 30.0), (Player, 3.0), (Refuser, 30.0)])
def test_a_whole_call_is_a_recorded_one_where_it_can_be(recorder, rest, caplog) -> None:
    ticks = itertools.count()
    latency = latency_of(lambda: Slow(ticks), (FLOAT,), Pace(clock=lambda: float(next(ticks))), recorder=recorder)
    assert (latency.layers["layer"]["W16A16"], latency.rest) == (1000.0, rest * 1000.0)
    said = "W16A16: such a call cannot be captured in a CUDA graph (operation not permitted when stream is capturing)"
    assert (said in caplog.text) == (recorder is Refuser)


def test_kernels_are_tuned_before_a_quantized_call_is_timed_and_not_while(hurried, tmp_path, monkeypatch) -> None:
    # Of the tuner alone: the CPU's kernels need not be compiled again.
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    asked = []

    class Tuned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            asked.append((type(self.layer) is nn.Linear, tuning.TUNER.get() is not None))
            return self.layer(x)

    latency_of(Tuned, (LayerBits(weight=8, activation=16),), Pace(), backend="reference", tune=True)
    timed = [False] * (2 + 2 * REPEATS)
    # The call and its layers by themselves, warmed up and measured once.
    assert [tuned for is_float, tuned in asked if not is_float] == [True] * 4 + timed
    assert [tuned for is_float, tuned in asked if is_float] == timed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_call_on_a_gpu_takes_no_time_to_launch(caplog) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2, device="cuda")

        def forward(self, x):
            time.sleep(0.02)
            return self.layer(x)

    latency = latency_of(Late, (FLOAT,), Pace("cuda"), device="cuda")
    assert not caplog.records
    assert latency.rest < 5.0


def test_time_without_a_table_or_with_another_models_names_the_command(run) -> None:
    run.config = with_budget(run.config, latency_ms=100.0)
    command = f"mixdq benchmark {run.paths.root} --layers"
    with pytest.raises(ArtifactError, match=f"`{command}` makes it"):
        planning.allocate(run)
    steps.time_layers(run)
    conversion = run.config.conversion.model_copy(update={"backend": "reference"})
    run.config = run.config.model_copy(update={"conversion": conversion})
    with pytest.raises(StaleArtifactError, match=f"Run `{command}`"):
        planning.allocate(run)


def test_a_pipeline_in_memory_is_timed_on_copies(tmp_path, configure, hurried) -> None:
    pipe = tiny_sdxl_pipeline()
    session = Session(tmp_path, configure(), pipe=pipe, everything=True)
    session.change(session.config)
    latency = steps.time_layers(session)
    assert type(pipe.unet.conv_in).__name__ == "Conv2d"
    assert str(LayerBits(weight=8, activation=16)) in latency.layers["conv_in"]
