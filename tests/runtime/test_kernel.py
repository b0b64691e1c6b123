import pytest
import torch

from mixdq.runtime.kernel import Backend, KernelRequest
from mixdq.runtime.select import BACKENDS
from mixdq.types.plan import LayerBits


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_every_backend_answers_in_words_and_bounds_its_error(backend: Backend) -> None:
    request = KernelRequest(
        layer="a",
        op="linear",
        bits=LayerBits(weight=8, activation=8),
        weight_shape=(4, 4),
        device="cpu",
        dtype=torch.float32,
        output_dtype=torch.float32,
    )
    assert backend.name
    # The one that adds floats is off by more than an epilogue.
    assert 0.0 < backend.tolerance < (2.0**-9 if backend.name == "fp8" else 1e-5)
    assert all(isinstance(reason, str) and reason for reason in backend.refusals(request))
