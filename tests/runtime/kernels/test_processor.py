import platform
import sys

import pytest
import torch

from mixdq.runtime.kernels import processor

OTHERS = "processor\t: 1\nflags\t\t: amx_int8\n"


@pytest.fixture
def says(monkeypatch, tmp_path):
    """Lets the system say something of a processor."""

    def say(machine: str, text: str) -> None:
        path = tmp_path / "cpuinfo"
        path.write_text(text)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(processor, "CPUINFO", path)

    return say


@pytest.mark.skipif(processor.features() is None, reason="the system says nothing of its processor")
def test_what_torch_finds_is_found() -> None:
    found, capability = processor.features(), torch.backends.cpu.get_cpu_capability()
    assert found is not None
    assert (capability in ("AVX2", "AVX512")) <= ("AVX2" in found)
    assert (capability == "AVX512") <= ("AVX512" in found)


def test_features_that_no_kernel_uses_are_named_as_such(says) -> None:
    says("x86_64", f"processor\t: 0\nflags\t\t: fpu sse2 avx2 amx_tile amx_int8 avx512_bf16\n\n{OTHERS}")
    assert processor.features() == ("SSE2", "AVX2", "AVX512-BF16", "AMX-INT8")
    assert processor.description() == "SSE2, AVX2 (there too, but not used by our kernels: AVX512-BF16, AMX-INT8)"


def test_arm_says_it_in_other_words(says) -> None:
    says("aarch64", "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n")
    assert processor.description() == "NEON, dot products"
    assert processor.identity()["CPU part"] == "0xd0c"


@pytest.mark.parametrize(
    ("machine", "text"), [("riscv64", "flags: avx2\n"), ("x86_64", "processor : 0\n"), ("x86_64", "")]
)
def test_what_nobody_says_is_unknown(says, machine: str, text: str) -> None:
    says(machine, text)
    assert processor.features() is None
    assert processor.description() == "unknown"


def test_systems_without_the_file_say_nothing(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    assert processor.identity() == {}
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processor.description() == "unknown"
