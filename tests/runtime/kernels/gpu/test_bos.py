"""First text tokens on a GPU against `mixdq.quant.bos`; interpreted, or on a GPU."""

import warnings

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from mixdq.quant.bos import BosRow
from mixdq.quant.qparams import activation_qparams
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.kernels.gpu import available, bos
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.linear import QuantizedLinear
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange

works = pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))

DEVICE = "cpu" if available.interpreted() else "cuda"
CHANNELS, OUT = 70, 37


def layer(backend: str, bits: str, *, bias: bool, symmetric: bool = True) -> QuantizedLinear:
    torch.manual_seed(0)
    module = nn.Linear(CHANNELS, OUT, bias=bias, device=DEVICE)
    widths = LayerBits.parse(bits)
    layout = LayerLayout(name="attn2.to_k", bits=widths, symmetric=symmetric, splits=(), bos=True, dynamic=False)
    (part,) = quantize_weight(module.weight, widths.weight, symmetric=symmetric)
    activation = [activation_qparams(ActivationRange(min=-3.0, max=2.5, batches=1), 8)]
    row = BosRow(input=stored(), output=torch.randn(OUT, device=DEVICE))
    return QuantizedLinear.from_float(
        module, layout, [part], None if widths.activation == 16 else activation, row, backend=backend
    )


def stored() -> torch.Tensor:
    state = torch.randn(CHANNELS, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    state[3] = 200.0
    return state


def both(
    bits: str, x: torch.Tensor, *, bias: bool = False, symmetric: bool = True, at_run_time: bool = False
) -> list[torch.Tensor]:
    outputs = []
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for name in ("cuda", "reference"):
            quantized = layer(name, bits, bias=bias, symmetric=symmetric)
            quantized.scale_at_run_time(at_run_time)
            outputs.append(quantized(x))
    return outputs


def texts(*first: torch.Tensor) -> torch.Tensor:
    x = torch.randn(len(first), 5, CHANNELS, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    x[:, 0] = torch.stack(first)
    return x


@works
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_multiples_of_the_stored_state_get_multiples_of_its_output(bias: bool, dtype: torch.dtype) -> None:
    e = stored().to(dtype).to(torch.float32)
    found, wanted = both("W4A8", texts(e, 0.5 * e, 0.0 * e, 2.0 * e).to(dtype), bias=bias)
    assert found.dtype == dtype
    assert torch.equal(found[:, 1:], wanted[:, 1:])
    # alpha is rounded to float32; sums in float64 may come out in another order.
    assert torch.allclose(found[:, 0].float(), wanted[:, 0].float(), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@works
@pytest.mark.parametrize(("bits", "symmetric"), [("W8A8", True), ("W4A8", True), ("W7A8", False), ("W3A16", False)])
def test_other_states_go_through_the_weight(bits: str, symmetric: bool) -> None:
    x = texts(torch.full((CHANNELS,), 0.7, device=DEVICE), stored())
    found, wanted = both(bits, x, bias=True, symmetric=symmetric, at_run_time=True)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@works
def test_a_state_that_is_not_finite_spoils_its_own_row_alone() -> None:
    bad = stored()
    bad[5] = torch.nan
    with torch.no_grad():
        y = layer("cuda", "W8A8", bias=True)(texts(bad, stored()))
    assert y[0, 0].isnan().all()
    assert not y[0, 1:].isnan().any()
    assert not y[1].isnan().any()


@works
@pytest.mark.parametrize("shape", [(CHANNELS,), (3, CHANNELS), (2, 1, CHANNELS), (1, 80, CHANNELS), (0, 5, CHANNELS)])
def test_texts_of_any_number_of_tokens(shape: tuple[int, ...]) -> None:
    x = torch.zeros(*shape, device=DEVICE)
    found, wanted = both("W8A8", x)
    assert torch.equal(found, wanted)


@works
def test_channels_may_lie_beyond_what_32_bits_count() -> None:
    # Of 4 GiB, which no system gives before they are written to.
    apart = 2**31 // (CHANNELS - 1) + 1
    wide = torch.empty((CHANNELS - 1) * apart + 16, dtype=torch.float16, device=DEVICE)
    x = wide.as_strided((2, 5, CHANNELS), (8, 1, apart))
    x.copy_(texts(stored(), torch.full((CHANNELS,), 0.7, device=DEVICE)))
    with torch.no_grad():
        found, wanted = (layer("cuda", "W8A8", bias=True)(each) for each in (x, x.contiguous()))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("num_bits", "floats"), [(4, False), (7, False), (8, True)])
def test_it_compiles_for_a_gpu(compiled, num_bits: int, floats: bool) -> None:
    fields = {4: (4, 0, 0), 7: (4, 2, 1), 8: (8, 0, 0)}[num_bits]
    constants = {
        "misfit_limit": 0.05,
        "field_0": fields[0],
        "field_1": fields[1],
        "field_2": fields[2],
        "tile": 32,
        "tiles": 8 // min(f for f in fields if f),
        "symmetric": True,
        "floats": floats,
        "zero_points": None,
        "has_bias": True,
        "block_columns": 64,
        "block_channels": 256,
    }
    pointers = {"x": "*bf16", "y": "*bf16", "plane_0": "*i8", "plane_1": "*i8", "plane_2": "*i8"}
    pointers |= dict.fromkeys(("bos_input", "bos_output", "bias", "scale"), "*fp32")
    kernel = compiled(bos.bos_rows, 89 if floats else 80, constants, pointers, ones=("x_channel",))
    assert "div.rn.f64" in kernel.asm["ptx"]
