import pytest
import torch
from torch import nn

from mixdq.errors import CalibrationError, ConfigError
from mixdq.quant.affine import fake_quantize
from mixdq.quant.bos import BosRow
from mixdq.quant.qparams import activation_qparams
from mixdq.quant.simulate import simulated_layer
from mixdq.quant.simulate_plan import simulated_plan, simulated_spec
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange, CalibrationRecord

STATE = torch.tensor([9.0, -2.0, 1.0, 4.0])
RANGE = ActivationRange(min=-2.0, max=3.0, batches=1)
W4A8 = LayerBits(weight=4, activation=8)


def linear(name: str, *, bos: bool = False, splits: tuple[int, ...] = ()) -> LayerSpec:
    return LayerSpec(
        name=name,
        op="linear",
        group="content",
        weight_shape=(3, 4),
        input_numel=8,
        macs=24,
        bos=bos,
        input_splits=splits,
    )


PLAIN, TEXT, JOINED = linear("plain"), linear("text", bos=True), linear("joined", splits=(1, 3))
TABLE = LayerTable(model="m", family="f", digest="d", layers=(PLAIN, TEXT, JOINED))


@pytest.fixture
def denoiser() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({layer.name: nn.Linear(4, 3, bias=False) for layer in TABLE})


@pytest.fixture
def record(denoiser: nn.ModuleDict) -> CalibrationRecord:
    narrow = ActivationRange(min=-0.5, max=0.5, batches=1)
    return CalibrationRecord(
        ranges={"plain": (RANGE,), "text": (RANGE,), "joined": (narrow, RANGE)},
        bos_input=STATE,
        bos_outputs={"text": denoiser["text"](STATE).detach()},
    )


def test_a_plain_layer_takes_its_range(denoiser: nn.ModuleDict, record: CalibrationRecord) -> None:
    x = torch.randn(2, 4)
    with simulated_spec(denoiser, PLAIN, LayerBits(weight=16, activation=8), record):
        found = denoiser["plain"](x)
    assert torch.equal(found, denoiser["plain"](fake_quantize(x, activation_qparams(RANGE, 8))))


def test_a_text_layer_keeps_its_first_token(denoiser: nn.ModuleDict, record: CalibrationRecord) -> None:
    x = torch.cat([STATE[None, None], torch.randn(1, 5, 4)], dim=1)
    for bits in (W4A8, LayerBits(weight=2, activation=16)):
        with simulated_spec(denoiser, TEXT, bits, record):
            found = denoiser["text"](x)
        assert torch.equal(found[0, 0], record.bos_outputs["text"])
        assert not torch.equal(found[0, 1:], denoiser["text"](x)[0, 1:])


def test_a_joined_layer_is_split(denoiser: nn.ModuleDict, record: CalibrationRecord) -> None:
    x = torch.randn(2, 4)
    with simulated_spec(denoiser, JOINED, W4A8, record):
        found = denoiser["joined"](x)
    with simulated_layer(denoiser["joined"], W4A8, ranges=record.ranges["joined"], splits=(1, 3)):
        assert torch.equal(found, denoiser["joined"](x))


def test_a_plan_is_all_its_layers_and_no_other(denoiser: nn.ModuleDict, record: CalibrationRecord) -> None:
    x = torch.cat([STATE[None, None], torch.randn(1, 5, 4)], dim=1)
    before = {name: module(x) for name, module in denoiser.items()}
    with simulated_plan(denoiser, TABLE, {"plain": W4A8, "text": W4A8}, record):
        during = {name: module(x) for name, module in denoiser.items()}
    assert torch.equal(before["joined"], during["joined"])
    for name in ("plain", "text"):
        assert not torch.equal(before[name], during[name])
        assert torch.equal(before[name], denoiser[name](x))


def test_a_failure_among_the_layers_puts_all_back(denoiser: nn.ModuleDict, record: CalibrationRecord) -> None:
    weights = {name: module.weight for name, module in denoiser.items()}
    broken = CalibrationRecord(ranges={"plain": (RANGE,)}, bos_input=STATE, bos_outputs=record.bos_outputs)
    with (
        pytest.raises(CalibrationError, match="joined: the calibration has no range"),
        simulated_plan(denoiser, TABLE, {"plain": W4A8, "joined": W4A8}, broken),
    ):
        pass
    for name, module in denoiser.items():
        assert module.weight is weights[name]
        assert "forward" not in vars(module)


def test_weights_alone_need_no_range_but_text_layers_need_their_row(denoiser: nn.ModuleDict) -> None:
    empty = CalibrationRecord(ranges={})
    with simulated_spec(denoiser, PLAIN, LayerBits(weight=4, activation=16), empty):
        pass
    with pytest.raises(CalibrationError, match="text: the calibration has no BOS row"):
        simulated_spec(denoiser, TEXT, LayerBits(weight=4, activation=16), empty)


def test_dynamic_activations_need_no_range_and_are_scaled_by_themselves(denoiser: nn.ModuleDict) -> None:
    x, empty = torch.randn(2, 4), CalibrationRecord(ranges={})
    with simulated_plan(denoiser, TABLE, {"plain": W4A8, "joined": W4A8}, empty, activations="dynamic"):
        found = {name: denoiser[name](x) for name in ("plain", "joined")}
    for name, splits in (("plain", ()), ("joined", (1, 3))):
        with simulated_layer(denoiser[name], W4A8, splits=splits, dynamic=True):
            assert torch.equal(found[name], denoiser[name](x))
    with pytest.raises(ConfigError, match="activations = 'dynamc': expected 'static' or 'dynamic'"):
        simulated_spec(denoiser, PLAIN, W4A8, empty, activations="dynamc")


def test_the_row_is_the_records(denoiser: nn.ModuleDict, record: CalibrationRecord) -> None:
    row = BosRow(input=STATE, output=record.bos_outputs["text"])
    x = 0.5 * STATE[None, None]
    with simulated_spec(denoiser, TEXT, W4A8, record):
        assert torch.allclose(denoiser["text"](x), 0.5 * row.output)
