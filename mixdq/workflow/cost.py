"""Seconds and memory of a model, measured in a process of its own: nothing that ran before is counted."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

import mixdq  # noqa: F401  (enters the quantizer in diffusers' tables)
from mixdq.errors import ArtifactError
from mixdq.evaluation.memory import peak_resident_bytes, reset_peak_resident
from mixdq.evaluation.timing import time_pictures
from mixdq.pipeline.generate import GenerationSpec, generate
from mixdq.pipeline.load import load_pipeline
from mixdq.runtime.kernels.gpu.tuning import tuning
from mixdq.workflow.graphs import remove_cuda_graphs, use_cuda_graphs
from mixdq.workflow.session import Session
from mixdq.workflow.settings import device_of, dtype_of, evaluation_prompts


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs to use.

    Attributes:
        seconds: median of one picture, text encoding and decoding included.
        peak_memory: greatest resident bytes of the process while drawing, libraries included; on a GPU, the greatest
            bytes allocated there. None where the system does not tell.
        load_seconds: from the folder to a pipeline that is ready.
        first_seconds: the first picture after loading.
    """

    seconds: float
    peak_memory: int | None
    load_seconds: float
    first_seconds: float


@dataclass(frozen=True, kw_only=True)
class _Job:
    model: str
    variant: str | None
    dtype: str
    device: str
    spec: GenerationSpec
    prompt: str
    repeats: int
    tune: bool = False
    graphs: bool = False


def float_cost(session: Session, *, repeats: int = 3, graphs: bool = False) -> Cost:
    """Return the cost of a run's floating-point model; `graphs` as `folder_cost` has it.

    A pipeline that was handed over in memory cannot be loaded elsewhere: it is timed where it is, its memory unknown.
    """
    if session.in_memory:
        prompt = evaluation_prompts(session.config)[:1]
        make = partial(generate, session.pipe, prompt, session.spec)
        if graphs:
            use_cuda_graphs(session.pipe)
        try:
            timing = time_pictures(make, pictures=1, repeats=repeats, warm_up=1 + graphs)
        finally:
            if graphs:
                remove_cuda_graphs(session.pipe)
        return Cost(seconds=timing.median, peak_memory=None, load_seconds=0.0, first_seconds=timing.median)
    job = _job(session, session.config.model.path, session.config.model.variant, repeats)
    return _in_own_process(replace(job, graphs=graphs))


def folder_cost(session: Session, model: Path, *, repeats: int = 3, tune: bool = False, graphs: bool = False) -> Cost:
    """Return the cost of a saved model, with the settings of a run.

    With `tune` a GPU's kernels are measured in all their tiles first, and the best of each are kept for later. With
    `graphs` its denoiser is launched as a CUDA graph; what is timed comes after its capture.
    """
    return _in_own_process(replace(_job(session, str(model), None, repeats), tune=tune, graphs=graphs))


def _job(session: Session, model: str, variant: str | None, repeats: int) -> _Job:
    config = session.config
    return _Job(
        model=model,
        variant=variant,
        dtype=str(dtype_of(config)).removeprefix("torch."),
        device=device_of(config),
        spec=session.spec,
        prompt=evaluation_prompts(config)[0],
        repeats=repeats,
    )


def _in_own_process(job: _Job) -> Cost:
    """Return what `_measure` says in a fresh interpreter, which needs no main module that can be imported again."""
    done = subprocess.run(
        [sys.executable, "-m", "mixdq.workflow.cost"],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ArtifactError(f"{job.model}: cannot be measured in a process of its own:\n{done.stderr.strip()[-2000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def _measure(job: _Job) -> Cost:
    """Load, draw, and say what it took; runs in the other process."""
    start = time.perf_counter()
    pipe = load_pipeline(job.model, dtype=getattr(torch, job.dtype), device=job.device, variant=job.variant)
    loaded = time.perf_counter()
    if job.tune:
        with tuning():
            generate(pipe, [job.prompt], job.spec)
        loaded, start = time.perf_counter(), start + time.perf_counter() - loaded
    if job.graphs:
        use_cuda_graphs(pipe)
    known = reset_peak_resident()
    generate(pipe, [job.prompt], job.spec)
    first = time.perf_counter()
    # A graph is captured when a call comes again.
    make, warm_up = partial(generate, pipe, [job.prompt], job.spec), int(job.graphs)
    timing = time_pictures(make, pictures=1, repeats=job.repeats, warm_up=warm_up)
    peak: int | None = peak_resident_bytes() if known else None
    if job.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated()
    return Cost(seconds=timing.median, peak_memory=peak, load_seconds=loaded - start, first_seconds=first - loaded)


def main() -> None:
    """Read a job from standard input and write its cost to standard output."""
    job = json.load(sys.stdin)
    cost = _measure(_Job(**{**job, "spec": GenerationSpec(**job["spec"])}))
    sys.stdout.write(json.dumps(asdict(cost)) + "\n")


if __name__ == "__main__":
    main()
