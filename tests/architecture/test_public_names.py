"""The whole public surface: these names and no others."""

import subprocess
import sys

import pytest

import mixdq

PUBLIC = {
    "inspect",
    "calibrate",
    "measure",
    "allocate",
    "choose",
    "apply",
    "generate",
    "evaluate",
    "quantize",
    "use_cuda_graphs",
    "remove_cuda_graphs",
    "MixDQConfig",
    "MixDQError",
}


def test_public_names_are_these() -> None:
    assert set(mixdq.__all__) == PUBLIC
    assert len(mixdq.__all__) == len(PUBLIC)
    assert set(dir(mixdq)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_name_is_there_and_documented(name) -> None:
    thing = getattr(mixdq, name)
    assert callable(thing)
    assert thing.__doc__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        mixdq.quantise  # noqa: B018


def test_importing_the_package_is_light() -> None:
    code = "import sys, mixdq; print(*({'torch', 'diffusers', 'transformers', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
