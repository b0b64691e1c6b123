import importlib.metadata
from collections.abc import Iterator

import pytest
import torch

import mixdq
from mixdq.errors import NoBackendError
from mixdq.runtime.kernels import compiler, native, processor
from mixdq.runtime.select import BACKENDS
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.types.plan import BitPlan, Budget, LayerBits
from mixdq.workflow import doctor
from mixdq.workflow.doctor import check_backend_works, device_name, diagnose, machine_facts


def test_every_backend_is_asked_about_both_kinds_of_layer() -> None:
    _, backends = diagnose()
    assert set(backends) == {backend.name for backend in BACKENDS}
    assert all(set(refusals) == {"linear", "conv2d"} for refusals in backends.values())


def test_reference_backend_works_everywhere() -> None:
    assert diagnose()[1]["reference"] == {"linear": [], "conv2d": []}


def test_floats_are_asked_of_linear_layers_alone() -> None:
    floats = [LayerBits.parse("W8A8 float"), LayerBits.parse("W16A16")]
    check_backend_works("reference", "cpu", torch.float32, floats)
    with pytest.raises(NoBackendError, match="W8A8 float, cpu"):
        check_backend_works("auto", "cpu", torch.float32, floats)
    if not diagnose()[1]["fp8"]["linear"]:
        check_backend_works("fp8", "cpu", torch.float32, floats)
        with pytest.raises(NoBackendError, match="the layer is W8A8"):
            check_backend_works("fp8", "cpu", torch.float32)


def test_facts_say_what_a_number_must_be_read_with() -> None:
    facts = machine_facts()
    assert facts["diffusers"] == importlib.metadata.version("diffusers")
    assert facts["device"] == device_name()
    assert {"system", "python", "torch", "cores"} <= facts.keys()
    assert facts["cpu kernels"].startswith(native.description())
    assert all(facts.values())


@pytest.mark.parametrize(
    ("script", "version"), [("echo 570.86.10; echo 570.86.10", "570.86.10"), ("echo no driver; exit 9", ""), (None, "")]
)
def test_the_driver_is_what_its_own_tool_says(script: str | None, version: str, monkeypatch, tmp_path) -> None:
    if script is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    doctor._driver.cache_clear()
    assert doctor._driver() == version
    doctor._driver.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch, tmp_path) -> Iterator[None]:
    """A machine without a C compiler that never had one."""
    cached = (native.library, native.trouble, native._loaded)
    for function in cached:
        function.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    yield
    for function in cached:
        function.cache_clear()


def test_facts_say_which_compiler_and_what_the_processor_has() -> None:
    facts = machine_facts()
    assert facts["cpu features"] == processor.description()
    if native.trouble() is None:
        assert facts["c compiler"] == " ".join(compiler.find())


def test_without_a_compiler_facts_say_so_and_what_runs_instead(no_compiler) -> None:
    facts, backends = diagnose()
    assert facts["c compiler"] == "none"
    assert facts["cpu kernels"].startswith("none: no C compiler found (gcc, cc, clang): install one")
    assert "`--backend reference` runs" in facts["cpu kernels"]
    assert all("no C compiler found" in reasons[0] for reasons in backends["cpu"].values())
    assert backends["reference"] == {"linear": [], "conv2d": []}


def test_without_a_compiler_the_cpu_backend_is_refused_in_words(no_compiler) -> None:
    pipe = tiny_sdxl_pipeline()
    prompts = ["a cat"]
    table, record = mixdq.inspect(pipe), mixdq.calibrate(pipe, prompts)
    bits = {spec.name: LayerBits(weight=8, activation=8) for spec in table}
    plan = BitPlan(name="all", layers=bits, budget=Budget(weight_bits=8.0))
    with pytest.raises(NoBackendError, match=r"cpu: no C compiler found \(gcc, cc, clang\): install one"):
        mixdq.apply(pipe, plan, record, table, backend="cpu")
    # Nothing was touched: it still draws.
    assert len(mixdq.generate(pipe, prompts)) == 1
