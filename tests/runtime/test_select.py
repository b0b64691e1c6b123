from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mixdq.errors import ConfigError, NoBackendError
from mixdq.runtime.kernel import Kernel, KernelRequest
from mixdq.runtime.select import BACKENDS, REFERENCE, check_backend, select
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import QParams, QTensor

REQUEST = KernelRequest(
    layer="up.conv",
    op="linear",
    bits=LayerBits(weight=3, activation=8),
    weight_shape=(4, 4),
    device="cpu",
    dtype=torch.float32,
    output_dtype=torch.float32,
)


@dataclass(frozen=True)
class Stub:
    name: str
    reasons: tuple[str, ...] = ()
    tolerance: float = 0.0

    def refusals(self, request: KernelRequest) -> list[str]:
        return list(self.reasons)

    def bind(self, request: KernelRequest, weight: QTensor, bias: Tensor | None, activation: QParams | None) -> Kernel:
        raise NotImplementedError


PICKY, LAZY, EAGER = Stub("picky", ("not 3 bits", "not today")), Stub("lazy", ("tired",)), Stub("eager")


def test_auto_takes_the_first_willing_backend_and_keeps_every_refusal_before_it() -> None:
    chosen, refusals = select(REQUEST, "auto", (PICKY, LAZY, EAGER, Stub("later"), REFERENCE))
    assert chosen is EAGER
    assert refusals == {"picky": ("not 3 bits", "not today"), "lazy": ("tired",)}


def test_auto_never_falls_back_to_the_reference() -> None:
    with pytest.raises(NoBackendError, match="--backend reference") as error:
        select(REQUEST, "auto", (PICKY, LAZY, REFERENCE))
    assert error.value.refusals == {"picky": ("not 3 bits", "not today"), "lazy": ("tired",)}
    assert "up.conv (linear, W3A8, cpu" in str(error.value)


def test_slower_ones_that_would_run_are_named_and_no_others() -> None:
    slow = Stub("int_mm")
    with pytest.raises(NoBackendError, match=r"--backend int_mm .*, or --backend reference"):
        select(REQUEST, "auto", (PICKY, slow, REFERENCE))
    for others in ((PICKY, Stub("int_mm", ("groups",)), REFERENCE), (PICKY, REFERENCE)):
        with pytest.raises(NoBackendError) as error:
            select(REQUEST, "auto", others)
        assert "int_mm" not in str(error.value).partition("slower")[2]


def test_without_any_fast_backend_the_message_says_so() -> None:
    with pytest.raises(NoBackendError, match="this version has no fast backend") as error:
        select(REQUEST, "auto", (REFERENCE,))
    assert error.value.refusals == {}


def test_a_named_backend_is_the_only_one_asked() -> None:
    assert select(REQUEST, "reference", (PICKY, EAGER, REFERENCE)) == (REFERENCE, {})
    with pytest.raises(NoBackendError, match="not 3 bits, not today") as error:
        select(REQUEST, "picky", (EAGER, PICKY))
    assert error.value.refusals.keys() == {"picky"}


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="auto, picky, eager"):
        select(REQUEST, "tpu", (PICKY, EAGER))
    assert check_backend("auto") == "auto"


def test_the_reference_backend_is_there_and_names_are_unique() -> None:
    names = [backend.name for backend in BACKENDS]
    assert REFERENCE in BACKENDS
    assert len(set(names)) == len(names)
    assert "auto" not in names
