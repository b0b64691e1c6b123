import pytest
import torch

from mixdq.errors import ArtifactError, ConfigError
from mixdq.store.artifact import digest_of_file
from mixdq.store.json_file import read_json
from mixdq.workflow import steps
from mixdq.workflow.benchmark import BENCHMARK, benchmark


def test_benchmark_tells_both_costs_and_the_machine(run) -> None:
    costs = benchmark(run)
    assert set(costs) == {"floating point", "quantized"}
    assert all(one.seconds > 0 for one in costs.values())
    written = read_json(run.paths.benchmark, BENCHMARK)
    assert written.content["costs"]["quantized"]["seconds"] == costs["quantized"].seconds
    assert "torch" in written.content["machine"]
    assert written.origin == {"receipt": digest_of_file(run.variant.receipt)}


def test_benchmark_before_quantization_names_the_verb(run) -> None:
    run.variant.receipt.unlink()
    with pytest.raises(ArtifactError, match=f"`mixdq apply {run.paths.root}` makes it"):
        benchmark(run)


@pytest.mark.parametrize(
    ("option", "said"), [("tune", "--tune measures the kernels"), ("graphs", "--cuda-graphs captures the launches")]
)
def test_what_needs_a_gpu_is_refused_without_one(run, option, said) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=f"{said} of an NVIDIA GPU, and this run is on cpu"):
        benchmark(run, **{option: True})
    if option == "tune":
        with pytest.raises(ConfigError, match=f"{said} of an NVIDIA GPU, and this run is on cpu"):
            steps.time_layers(run, tune=True)
        assert not (run.paths.root / "latency.json").exists()
