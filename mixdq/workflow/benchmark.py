"""The benchmark step: floating point and quantized, each in a process of its own, on a machine left alone."""

from dataclasses import asdict

from mixdq.errors import ArtifactError
from mixdq.store.artifact import Schema, digest_of_file
from mixdq.store.json_file import write_json
from mixdq.workflow.cost import Cost, float_cost, folder_cost
from mixdq.workflow.doctor import machine_facts
from mixdq.workflow.session import Session
from mixdq.workflow.settings import TUNE, expect_gpu

BENCHMARK = Schema("benchmark", "mixdq benchmark")

REPEATS = 5


def benchmark(session: Session, *, tune: bool = False, graphs: bool = False) -> dict[str, Cost]:
    """Return variant -> cost, written to benchmark.json with the machine's facts; options as `folder_cost` has them.

    Raises:
        ConfigError: kernels are to be tuned or graphs captured, but the run is not on a GPU.
        ArtifactError: nothing has been quantized yet.
    """
    if tune:
        expect_gpu(session.config, TUNE)
    if graphs:
        expect_gpu(session.config, "--cuda-graphs captures the launches")
    if not session.variant.receipt.exists():
        raise ArtifactError(
            f"{session.variant.receipt}: there is no such file; `mixdq apply {session.paths.root}` makes it"
        )
    receipt = digest_of_file(session.variant.receipt)
    costs = {
        "floating point": float_cost(session, repeats=REPEATS, graphs=graphs),
        "quantized": folder_cost(session, session.variant.model, repeats=REPEATS, tune=tune, graphs=graphs),
    }
    content = {
        "machine": machine_facts(),
        "cuda graphs": graphs,
        "costs": {name: asdict(cost) for name, cost in costs.items()},
    }
    write_json(session.paths.benchmark, BENCHMARK, content, {"receipt": receipt})
    return costs
