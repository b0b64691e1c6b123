import importlib.metadata

from mixdq.runtime.kernels import native
from mixdq.runtime.select import BACKENDS
from mixdq.workflow.doctor import device_name, diagnose, machine_facts


def test_every_backend_is_asked_about_both_kinds_of_layer() -> None:
    _, backends = diagnose()
    assert set(backends) == {backend.name for backend in BACKENDS}
    assert all(set(refusals) == {"linear", "conv2d"} for refusals in backends.values())


def test_reference_backend_works_everywhere() -> None:
    assert diagnose()[1]["reference"] == {"linear": [], "conv2d": []}


def test_facts_say_what_a_number_must_be_read_with() -> None:
    facts = machine_facts()
    assert facts["diffusers"] == importlib.metadata.version("diffusers")
    assert facts["device"] == device_name()
    assert {"system", "python", "torch", "cores"} <= facts.keys()
    assert facts["cpu kernels"] == native.description()
    assert all(facts.values())
