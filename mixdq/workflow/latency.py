"""The latency table: what every layer takes at every pair of widths that the program may give it, on this machine.

For each pair the whole denoiser is converted to it and run; its layers are timed as they stand. What is not in the
layers is taken from the quantized runs, for between quantized layers run kernels of our own too. A plan that gives all
layers one pair is foretold what it took. On a GPU that is what a CUDA graph of it takes: launched from Python, layer by
layer, a call takes many times as long, and by how much is chance.
"""

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial

from torch import nn

from mixdq.allocation.joint import candidates
from mixdq.conversion.convert import convert
from mixdq.errors import MixDQError
from mixdq.evaluation.latency import LayerTimes, time_layers
from mixdq.evaluation.pace import Pace
from mixdq.pipeline.trace import moved, record_calls, replay_there
from mixdq.runtime.capture import CudaRecorder, Recorder, repeatable
from mixdq.runtime.kernels.gpu.tuning import tuning
from mixdq.runtime.select import AUTO
from mixdq.store.artifact import digest_of
from mixdq.store.latency_file import read_latency, write_latency
from mixdq.types.latency import LatencyTable
from mixdq.types.layers import LayerTable
from mixdq.types.plan import FLOAT_BITS, Activations, BitPlan, LayerBits
from mixdq.types.progress import Progress, no_progress
from mixdq.types.tensors import CalibrationRecord
from mixdq.workflow.doctor import machine_facts
from mixdq.workflow.origins import latency_origin
from mixdq.workflow.planning import LATENCY
from mixdq.workflow.session import Session
from mixdq.workflow.settings import TUNE, evaluation_prompts, expect_gpu

log = logging.getLogger(__name__)

FLOAT = LayerBits(weight=FLOAT_BITS, activation=FLOAT_BITS)
REPEATS = 5
TIMES_OF = ("system", "cpu", "cpu features", "threads", "device", "gpu")
"""Facts of a machine that decide what its times are; those of another one are measured again."""


def measure_latency(
    session: Session, table: LayerTable, record: CalibrationRecord, *, own: bool = True, tune: bool = False
) -> LatencyTable:
    """Return the milliseconds of a run's layers here, written to latency.json; `own` as in `Session.resolve`.

    Those of another machine, or of another number of threads, are measured again; so are those of kernels to be tuned.

    Raises:
        ConfigError: kernels are to be tuned, but the run is not on a GPU.
    """
    if tune:
        expect_gpu(session.config, TUNE)
    path, config = session.paths.root / LATENCY, session.config
    origin = latency_origin(session, table)

    def make() -> LatencyTable:
        trace = record_calls(session.pipe, session.family, evaluation_prompts(config)[:1], session.spec, batch_size=1)
        device = next(session.family.denoiser(session.pipe).parameters()).device
        first = moved(trace.calls[0], device)
        # Every pair that a budget of time may choose from, whatever the present one is.
        budget = replace(config.allocation.budget(layer.name for layer in table), latency_ms=1.0)

        def load() -> nn.Module:
            if session.in_memory:
                return deepcopy(session.family.denoiser(session.pipe))
            # A denoiser is converted for good, and one is in memory at a time.
            session.release()
            return session.family.denoiser(session.pipe)

        found = latency_table(
            load,
            lambda denoiser: replay_there(denoiser, first),
            table,
            record,
            {layer.name: candidates(layer, budget) for layer in table},
            Pace(device),
            backend=config.conversion.backend,
            symmetric=config.conversion.symmetric,
            rounding=config.conversion.rounding,
            activations=config.conversion.activations,
            tune=tune,
            origin=origin,
            progress=session.progress,
        )
        session.release()
        write_latency(path, found)
        return found

    if tune:
        return make()
    here = _times_of(machine_facts())

    def read() -> tuple[LatencyTable, Mapping[str, str]]:
        found = read_latency(path)
        there = _times_of(found.machine)
        if there != here:
            differs = "; ".join(
                f"{name} was {there[name]}, is {here[name]}" for name in here if there[name] != here[name]
            )
            log.warning("%s is not of this machine: %s", path, differs)
        return found, {**found.origin, "machine": digest_of(there)}

    expected = {**origin, "machine": digest_of(here)}
    return session.resolve(path, command="mixdq benchmark --layers", expected=expected, read=read, make=make, own=own)


def _times_of(machine: Mapping[str, str]) -> dict[str, str]:
    return {name: machine.get(name, "unknown") for name in TIMES_OF}


def latency_table(
    load: Callable[[], nn.Module],
    call: Callable[[nn.Module], object],
    table: LayerTable,
    record: CalibrationRecord,
    widths: Mapping[str, Sequence[LayerBits]],
    pace: Pace,
    *,
    backend: str = AUTO,
    symmetric: bool = True,
    rounding: str = "nearest",
    activations: Activations = "static",
    repeats: int = REPEATS,
    recorder: type[Recorder] = CudaRecorder,
    tune: bool = False,
    origin: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> LatencyTable:
    """Return the milliseconds of every layer at its `widths` within one `call` of the denoiser that `load` gives anew.

    At the typical `pace` of the time that it takes. On the device of the `recorder` a whole call is what it records,
    for which the call's arguments must be there; a warning says where it cannot record one. With `tune` a GPU's kernels
    are measured in all their tiles first, as `tuning` does. Raises what `mixdq.conversion.convert.convert` raises.
    """
    recorded = False
    every = sorted({bits for pairs in widths.values() for bits in pairs} | {FLOAT}, key=str)
    found: dict[LayerBits, LayerTimes] = {}
    for done, bits in enumerate(every):
        progress(done, len(every), "latency")
        # Those that cannot have it take it all the same, lest what lies between layers be another model's.
        given = {name: FLOAT if set(pairs) == {FLOAT} else bits for name, pairs in widths.items()}
        denoiser = load()
        if bits != FLOAT:
            convert(
                denoiser,
                BitPlan(name=f"{bits}-latency", layers=given),
                table,
                record,
                backend=backend,
                symmetric=symmetric,
                rounding=rounding,
                activations=activations,
            )
        modules = {layer.name: denoiser.get_submodule(layer.name) for layer in table}
        one = partial(call, denoiser)
        device = next(denoiser.parameters()).device
        recorded = device.type == recorder.device_type
        if tune and bits != FLOAT:
            with tuning():
                # A layer by itself is another product than joined with its neighbours.
                time_layers(one, modules, pace, repeats=1)
        whole = _recorded(one, bits, recorder(device)) if recorded else None
        times = found[bits] = time_layers(one, modules, pace, whole=whole, repeats=repeats)
        # Before the next is loaded; blocks may hold themselves.
        del denoiser, modules, one, whole
        gc.collect()
        log.info("%s: %.2f ms a call, %.2f ms of it between the layers", bits, times.whole, times.rest)
    progress(len(every), len(every), "latency")
    # As at the pace of the whole time, not of its beginning.
    return table_of_times(found, widths, scale=pace.typical, equally=recorded, origin=origin)


def _recorded(call: Callable[[], object], bits: LayerBits, recorder: Recorder) -> Callable[[], object] | None:
    """Return what does a call again; None, with a warning, where it cannot be recorded."""
    try:
        return repeatable(call, recorder)
    except (RuntimeError, MixDQError) as error:
        log.warning(
            "%s: such a call cannot be captured in a CUDA graph (%s). It is timed as Python launches it, and what "
            "launches take counts as time between its layers.",
            bits,
            " ".join(str(error).split())[:300],
        )
        return None


def table_of_times(
    found: Mapping[LayerBits, LayerTimes],
    widths: Mapping[str, Sequence[LayerBits]],
    *,
    scale: float = 1.0,
    equally: bool = False,
    origin: Mapping[str, str] | None = None,
) -> LatencyTable:
    """Return `scale` times what was `found`, of each layer at its `widths`.

    What lies between the layers takes longer beside some widths than beside others, which is put on the layers there:
    a plan that gives all layers one pair is foretold what was found with it. Put in proportion to the layers' times, or
    `equally` on all that have a choice, whose times then tell of each of them alone; layers that together take longer
    than a whole call, as they may on a GPU that runs several as one, keep their times.
    """
    quantized = [times for bits, times in found.items() if bits != FLOAT]
    rest = min(times.rest for times in (found.values() if equally else quantized or [found[FLOAT]]))
    free = {name for name, pairs in widths.items() if set(pairs) != {FLOAT}}
    layers: dict[str, dict[str, float]] = {name: {} for name in widths}
    for bits, times in found.items():
        total = sum(times.layers.values())
        share = scale * max(times.whole - rest, 0.0) / total if total else 0.0
        for name in (name for name, pairs in widths.items() if bits in pairs):
            if equally:
                more = (times.rest - rest) / len(free) if name in free else 0.0
                layers[name][str(bits)] = scale * (times.layers[name] + more)
            else:
                layers[name][str(bits)] = share * times.layers[name]
    return LatencyTable(layers=layers, rest=scale * rest, machine=machine_facts(), origin=origin or {})
