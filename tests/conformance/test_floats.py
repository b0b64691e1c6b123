"""E4M3 floats on every backend that multiplies them, against numpy in float64, from the definition.

Products of such floats are exact in float64, and so are their sums here. The reference rounds nothing but its epilogue.
Others add in float32, in an order of their own: each of `depth` additions is off by half an ulp of the sum of
magnitudes at most; on a GPU, which keeps fewer bits of a sum, the declared tolerance stands for that.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mixdq.runtime.kernel import Backend, KernelRequest
from mixdq.runtime.select import BACKENDS
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import QParams, QTensor, QuantSpec

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPEC = QuantSpec(num_bits=8, symmetric=True, channel_axis=0, number="float")

pytestmark = [
    pytest.mark.parametrize("device", DEVICES),
    pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name),
]

Numbers = NDArray[np.float64]


def e4m3(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if code >> 7 else size


CODES = np.array([code for code in range(256) if code & 127 != 127], dtype=np.uint8)
NUMBERS = np.array([e4m3(int(code)) for code in range(256)])


def nearest(x: Numbers) -> Numbers:
    """The float nearest to each of `x`, found among all of them; of two the even one."""
    # The first of equals is taken.
    order = CODES[np.argsort(CODES & 1, kind="stable")]
    off = np.abs(np.clip(x, -448.0, 448.0)[..., None] - NUMBERS[order])
    return NUMBERS[order[off.argmin(-1)]]


def test_products_are_those_of_the_nearest_floats(backend: Backend, device: str) -> None:
    request = KernelRequest(
        layer="linear",
        op="linear",
        bits=LayerBits(weight=8, activation=8, number="float"),
        weight_shape=(1, 1),
        device=device,
        dtype=torch.float32,
        output_dtype=torch.float32,
    )
    if refusals := backend.refusals(request):
        pytest.skip(f"{backend.name}: {'; '.join(refusals)}")

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(
        out=st.integers(1, 35),
        depth=st.integers(1, 200),
        leading=st.sampled_from([(), (1,), (5,), (1, 7), (3, 4), (2, 0)]),
        dtype=st.sampled_from(DTYPES),
        dynamic=st.booleans(),
        with_bias=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
    def check(
        out: int, depth: int, leading: tuple[int, ...], dtype: torch.dtype, dynamic: bool, with_bias: bool, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        codes = rng.choice(CODES, (out, depth))
        scale = np.float32(rng.uniform(0.001, 0.01, (out, 1)))
        bias = torch.from_numpy(np.float32(rng.normal(size=out))).to(dtype) if with_bias else None
        # From numbers that are subnormal to numbers beyond the range.
        x = torch.from_numpy(np.float32(rng.normal(size=(*leading, depth)) * 10 ** rng.uniform(-3, 1))).to(dtype)
        fixed = np.float32(1.0 / 448)
        weight = QTensor(
            codes=torch.from_numpy(codes.view(np.int8)).to(device),
            qparams=QParams(scale=torch.from_numpy(scale).to(device), zero_point=None, spec=SPEC),
            shape=(out, depth),
        )
        static = QParams(scale=torch.tensor(fixed, device=device), zero_point=None, spec=SPEC)
        asked = KernelRequest(
            **{
                **vars(request),
                "weight_shape": (out, depth),
                "dynamic": dynamic,
                "dtype": dtype,
                "output_dtype": dtype,
            }
        )
        kernel = backend.bind(asked, weight, None if bias is None else bias.to(device), None if dynamic else static)
        y = kernel(x.to(device)).cpu()
        assert (y.shape, y.dtype) == ((*leading, out), dtype)

        single = x.float().numpy()
        most = np.abs(single).max(-1, keepdims=True).astype(np.float64)
        own = np.where(most == 0, 1.0, most / 448).astype(np.float32) if dynamic else fixed
        fake = nearest((single / own).astype(np.float64)) * own.astype(np.float64)
        real = NUMBERS[codes] * scale.astype(np.float64)
        added = np.zeros(out) if bias is None else bias.double().numpy()
        magnitude = np.abs(fake) @ np.abs(real).T + np.abs(added)
        sums = 0.0 if backend.name == "reference" else depth * 2.0**-24 if device == "cpu" else backend.tolerance
        # The epilogue's five roundings, and those of bias and output to the dtype, whose numbers end somewhere.
        kept = magnitude < torch.finfo(dtype).max / 2
        eps, least = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
        bound = magnitude * (sums + 5 * 2.0**-24 + eps) + least
        assert (np.abs(y.double().numpy() - (fake @ real.T + added)) <= bound)[kept].all()

    check()
