import gc
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, SequentialHook
from torch import nn

from mixdq.errors import NoBackendError
from mixdq.quant.bos import BosRow
from mixdq.runtime.before import NOTHING
from mixdq.runtime.binding import Bound, bind_parts, is_offloaded, stand_in
from mixdq.runtime.kernel import HoldingKernel
from mixdq.runtime.kernels import native
from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.linear import QuantizedLinear
from mixdq.runtime.together import run_together

Quantize = Callable[..., QuantizedLinear]


def bound(layer: QuantizedLinear, backend: str, x: torch.Tensor) -> Bound:
    parts = bind_parts(layer, layer.layout, layer.parts(), layer.activation(), backend=backend, x=x)
    return Bound(parts[0], parts, layer.weight, x.device, x.dtype, None)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("splits", [(), (4, 5)])
@pytest.mark.parametrize("bits", ["W3A8", "W8A8"])
def test_the_parts_add_up_to_the_layer_and_give_the_codes_back(
    quantized: Quantize, backend: str, splits: tuple[int, ...], bits: str
) -> None:
    if backend == "cpu" and native.trouble():
        pytest.skip(str(native.trouble()))
    layer, x = quantized(nn.Linear(9, 5), bits, splits=splits), torch.randn(3, 9)
    made = bound(layer, backend, x)
    pieces = torch.split(x, list(splits), dim=-1) if splits else (x,)
    total = sum(kernel(piece) for kernel, piece in zip(made.parts, pieces, strict=True))
    assert isinstance(total, torch.Tensor)
    assert torch.equal(total, layer(x))
    codes = made.codes()
    if all(isinstance(part, HoldingKernel) for part in made.parts):
        assert codes is not None
        assert torch.equal(codes, layer.weight)
    else:
        assert codes is None


def test_a_kernel_fits_what_it_was_bound_for_alone(quantized: Quantize) -> None:
    layer, x = quantized(nn.Linear(9, 5), "W4A8"), torch.randn(3, 9)
    made = bound(layer, "reference", x)
    assert made.fits(layer.weight, torch.randn(7, 2, 9), None)
    assert not made.fits(layer.weight, x.half(), None)
    assert not made.fits(layer.weight, x.to("meta"), None)
    assert not made.fits(layer.weight, x, "circular")
    assert not made.fits(nn.Parameter(layer.weight.data, requires_grad=False), x, None)


@pytest.mark.parametrize("backend", ["reference", "cpu", "auto"])
def test_weight_and_input_on_two_devices_are_refused_before_anything_is_read(quantized: Quantize, backend: str) -> None:
    layer, x = quantized(nn.Linear(9, 5), "W4A8"), torch.randn(3, 9)
    with pytest.raises(NoBackendError, match=r"layer: its weight is on cpu, its input on meta\. Move both"):
        bound(layer, backend, x.to("meta"))
    with pytest.raises(NoBackendError, match="its weight is on meta, its input on cpu"):
        bound(layer.to("meta"), backend, x)


def test_a_stand_in_looks_like_the_weight_and_weighs_nothing() -> None:
    weight = torch.ones(30, 20, dtype=torch.uint8)
    made = stand_in(weight)
    assert (made.shape, made.dtype, made.device) == (weight.shape, weight.dtype, weight.device)
    assert made.untyped_storage().nbytes() == 1


def test_only_hooks_that_offload_count() -> None:
    layer = nn.Linear(2, 2)
    assert not is_offloaded(layer)
    for offload in (False, True):
        for hook in (AlignDevicesHook(offload=offload), SequentialHook(ModelHook(), AlignDevicesHook(offload=offload))):
            layer._hf_hook = hook
            assert is_offloaded(layer) is offload


def reachable(thing: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """Yield every tensor that a layer, and all it holds by whatever path, keeps alive."""
    if id(thing) in seen or isinstance(thing, type | ModuleType | FunctionType):
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
    for other in gc.get_referents(thing):
        yield from reachable(other, seen)


def bytes_held(*layers: QuantizedLayer) -> int:
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in reachable(layers, set())}
    return sum(storages.values())


@pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))
@pytest.mark.parametrize("bits", ["W8A8", "W4A8", "W3A8", "W2A4", "W8A16", "W4A16"])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("splits", [(), (64, 96)])
def test_a_layer_that_has_run_holds_its_packed_weight_once(
    quantized: Quantize, bits: str, bos: bool, splits: tuple[int, ...]
) -> None:
    # Whole panels and whole words, so that nothing is filled up.
    row = BosRow(input=torch.randn(160) * 50.0, output=torch.randn(96)) if bos else None
    layer = quantized(nn.Linear(160, 96), bits, splits=splits, bos=row, backend="cpu")
    saved = sum(tensor.nbytes for tensor in layer.state_dict().values())
    x = torch.randn(2, 3, 160)
    if row is not None:
        x[:, 0] = row.input
    for _ in range(2):
        layer(x)
    # For each part and output a scale, a sum of codes and the bias in float32; the last first tokens and their rows.
    extra = 12 * 96 * max(1, len(splits)) + (2 * 4 * (160 + 96) if bos else 0) + 64
    assert saved - 64 <= bytes_held(layer) <= saved + extra


@pytest.mark.skipif(available.trouble() is not None, reason=str(available.trouble()))
@pytest.mark.parametrize("bits", ["W8A8", "W3A8", "W4A16"])
@pytest.mark.parametrize("bos", [True, False])
def test_layers_that_are_joined_hold_their_packed_weights_once_in_the_gpus_kernels(
    quantized: Quantize, bits: str, bos: bool
) -> None:
    # Whole tiles, so that nothing is filled up.
    device, widths = available.device_type(), (64, 96, 64)
    rows = [BosRow(input=torch.randn(256) * 50.0, output=torch.randn(out)) if bos else None for out in widths]
    layers = [
        quantized(nn.Linear(256, out), bits, bos=row, backend="cuda").to(device)
        for out, row in zip(widths, rows, strict=True)
    ]
    saved = sum(tensor.nbytes for layer in layers for tensor in layer.state_dict().values())
    x = torch.randn(1, 3, 256, device=device)
    for _ in range(2):
        run_together(layers, x, NOTHING)
    assert len({id(layer.joining(x).joint) for layer in layers}) == 1
    # For each output a scale, a sum of codes and the bias in float32; the first token's rows, side by side.
    extra = 12 * sum(widths) + (4 * 3 * 256 + 4 * sum(widths) if bos else 0) + 256
    assert saved - 256 <= bytes_held(*layers) <= saved + extra


@pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))
def test_a_convolution_that_has_run_holds_its_packed_weight_once(quantized: Quantize) -> None:
    layer = quantized(nn.Conv2d(64, 96, 3, padding=1), "W4A8", backend="cpu")
    saved = sum(tensor.nbytes for tensor in layer.state_dict().values())
    layer(torch.randn(1, 64, 5, 5))
    assert saved - 64 <= bytes_held(layer) <= saved + 12 * 96 + 64
