import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mixdq.conversion.convert import convert
from mixdq.errors import ConfigError, NoBackendError, NonFiniteError, PlanError
from mixdq.evaluation.memory import resident_bytes
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.kernels import native
from mixdq.runtime.layer import QuantizedLayer
from mixdq.runtime.linear import QuantizedLinear
from mixdq.testing import fingerprint
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import Activations, BitPlan, LayerBits
from mixdq.types.tensors import ActivationRange, CalibrationRecord

Inputs = tuple[Tensor, Tensor]
RANGE = ActivationRange(min=-4.0, max=4.0, batches=1)


def plan_of(*bits: str) -> BitPlan:
    names = ("conv", "block.to_k", "join", "out")
    return BitPlan(name="p", layers={name: LayerBits.parse(text) for name, text in zip(names, bits, strict=True)})


def test_eight_bits_compute_nearly_what_floats_did(
    toy: nn.Module, table: LayerTable, record: CalibrationRecord, inputs: Inputs
) -> None:
    before = toy(*inputs)
    convert(toy, plan_of("W8A8", "W8A8", "W8A8", "W8A8"), table, record, backend="reference")
    after = toy(*inputs)
    assert not torch.equal(after, before)
    assert torch.nn.functional.mse_loss(after, before) < 1e-3 * before.pow(2).mean()


def test_modules_become_what_the_plan_says(toy: nn.Module, table: LayerTable, record: CalibrationRecord) -> None:
    out = toy.out
    convert(toy, plan_of("W4A8", "W8A16", "W2A8", "W16A16"), table, record, backend="reference")
    assert isinstance(toy.conv, QuantizedConv2d)
    assert isinstance(toy.join, QuantizedConv2d)
    assert isinstance(toy.block["to_k"], QuantizedLinear)
    assert toy.out is out
    assert toy.join.weight_scale.shape == (4, 2)
    assert torch.equal(toy.block["to_k"].bos_output, record.bos_outputs["block.to_k"])
    assert not toy.conv.training


def test_a_table_without_bos_layers_gives_plain_quantization(
    toy: nn.Module, table: LayerTable, record: CalibrationRecord
) -> None:
    plain = replace(table, layers=tuple(replace(layer, bos=False) for layer in table))
    convert(toy, plan_of("W8A8", "W8A8", "W8A8", "W8A8"), plain, record, backend="reference")
    assert toy.block["to_k"].bos_row() is None


def test_receipts_count_bytes_and_say_who_runs_it(toy: nn.Module, table: LayerTable, record: CalibrationRecord) -> None:
    seen = []
    receipt = convert(
        toy,
        plan_of("W4A8", "W8A16", "W2A8", "W16A16"),
        table,
        record,
        backend="reference",
        progress=lambda *call: seen.append(call),
    )
    conv, to_k, join, out = receipt.layers
    assert receipt.plan == "p"
    assert [layer.backend for layer in receipt.layers] == ["reference", "reference", "reference", None]
    # 6 x 27 codes of half a byte (14 bytes a row), 6 scales, an input scale and zero point, 6 biases.
    assert (conv.bytes_before, conv.bytes_after) == (2 * (6 * 27 + 6), 6 * 14 + 6 * 4 + 8 + 12)
    # 6 x 5 codes, 6 scales, the BOS state and row.
    assert to_k.bytes_after == 30 + 24 + 4 * (5 + 6)
    # Parts of 6 and 3 codes of 2 bits: 2 + 1 bytes a row; 2 x 4 scales, two ranges, 4 biases.
    assert join.bytes_after == 4 * 3 + 32 + 16 + 8
    assert (out.bytes_before, out.bytes_after) == (40, 40)
    assert seen == [(done, 4, "conversion") for done in (1, 2, 3, 4)]


def test_float_weights_are_freed_layer_by_layer(toy: nn.Module, table: LayerTable, record: CalibrationRecord) -> None:
    weights = [weakref.ref(toy.get_submodule(layer.name).weight) for layer in table]
    alive: list[int] = []

    def count(done: int, total: int, what: str) -> None:
        alive.append(sum(weight() is not None for weight in weights))

    # Not at the next sweep but at once: what waits for one adds to the peak.
    gc.disable()
    try:
        convert(toy, plan_of("W8A8", "W4A8", "W2A8", "W4A16"), table, record, backend="reference", progress=count)
    finally:
        gc.enable()
    assert alive == [3, 2, 1, 0]


def test_what_is_freed_goes_back_to_the_system() -> None:
    # Weights of 4 MiB each, which the C library would keep; small tensors that stay lie between.
    model = nn.ModuleDict({str(i): nn.Linear(1024, 1024) for i in range(16)})
    layers = tuple(
        LayerSpec(name=name, op="linear", group="quality", weight_shape=(1024, 1024), input_numel=1, macs=1)
        for name in model
    )
    table = LayerTable(model="many", family="toy", digest="d", layers=layers)
    record = CalibrationRecord(ranges=dict.fromkeys(model, (RANGE,)))
    plan = BitPlan(name="p", layers={name: LayerBits(weight=4, activation=8) for name in model})
    before = resident_bytes()
    if before is None:
        pytest.skip("this system does not say what is resident")
    receipt = convert(model, plan, table, record, backend="reference")
    after = resident_bytes()
    assert after is not None
    # The receipt counts floats of two bytes, these have four.
    freed = 2 * receipt.bytes_before - receipt.bytes_after
    assert after < before - freed // 2


@pytest.mark.parametrize("symmetric", [True, False])
def test_asymmetric_weights_have_zero_points(
    toy: nn.Module, table: LayerTable, record: CalibrationRecord, symmetric: bool
) -> None:
    plan = plan_of("W8A8", "W8A8", "W8A8", "W8A8")
    convert(toy, plan, table, record, backend="reference", symmetric=symmetric)
    assert (toy.conv.weight_zero_point is None) == symmetric


def test_dynamic_activations_need_no_ranges_and_depend_on_no_other_picture(
    toy: nn.Module, table: LayerTable, record: CalibrationRecord, inputs: Inputs
) -> None:
    before = toy(*inputs)
    plan = plan_of("W8A8", "W8A8", "W8A8", "W8A8")
    convert(toy, plan, table, replace(record, ranges={}), backend="reference", activations="dynamic")
    assert all(toy.get_submodule(layer.name).activation() is None for layer in table)
    after = toy(*inputs)
    assert torch.nn.functional.mse_loss(after, before) < 1e-3 * before.pow(2).mean()
    for i in range(2):
        assert torch.equal(toy(inputs[0][i : i + 1], inputs[1][i : i + 1]), after[i : i + 1])


def test_nothing_is_touched_when_anything_is_wrong(
    toy: nn.Module, table: LayerTable, record: CalibrationRecord
) -> None:
    good = plan_of("W8A8", "W8A8", "W8A8", "W8A8")
    before = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    with pytest.raises(PlanError):
        convert(toy, plan_of("W8A8", "W8A8", "W8A8", "W16A8"), table, record, backend="reference")
    with pytest.raises(ConfigError):
        convert(toy, good, table, record, backend="abacus")
    with pytest.raises(ConfigError, match="activations = 'dynamc': expected 'static' or 'dynamic'"):
        convert(toy, good, table, record, backend="reference", activations="dynamc")
    toy.double()
    with pytest.raises(NoBackendError, match=r"float64.*--backend reference"):
        convert(toy, good, table, record)
    toy.float()
    assert not any(isinstance(module, QuantizedLayer) for module in toy.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in toy.state_dict().items())
    with torch.no_grad():
        toy.out.weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="out"):
        convert(toy, good, table, record, backend="reference")
    assert type(toy.conv) is nn.Conv2d


def test_converting_twice_is_refused(toy: nn.Module, table: LayerTable, record: CalibrationRecord) -> None:
    plan = plan_of("W8A8", "W8A8", "W8A8", "W8A8")
    convert(toy, plan, table, record, backend="reference")
    with pytest.raises(PlanError, match="expected a float Conv2d, found QuantizedConv2d"):
        convert(toy, plan, table, record, backend="reference")


needs_compiler = pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))


@needs_compiler
def test_widths_that_no_cpu_kernel_takes_are_refused_before_anything_is_touched(
    toy: nn.Module, table: LayerTable, record: CalibrationRecord
) -> None:
    before = fingerprint(toy)
    with pytest.raises(
        NoBackendError, match=r"conv \(conv2d, W8A8, .*8-bit weights with zero points.* 2 more"
    ) as error:
        convert(toy, plan_of("W8A8", "W8A8", "W4A8", "W8A8"), table, record, backend="cpu", symmetric=False)
    assert error.value.refusals.keys() == {"cpu"}
    assert fingerprint(toy) == before
    convert(toy, plan_of("W7A8", "W8A16", "W4A8", "W16A16"), table, record, backend="cpu", symmetric=False)


@needs_compiler
@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("bits", [("W8A8",) * 4, ("W4A8", "W2A8", "W3A8", "W8A4"), ("W5A8", "W4A16", "W6A2", "W16A16")])
def test_the_cpus_kernels_give_what_the_reference_gives_whatever_changes_between_calls(
    toy: nn.Module, table: LayerTable, record: CalibrationRecord, bits: tuple[str, ...], activations: Activations
) -> None:
    models = []
    for backend in ("cpu", "reference"):
        models.append(copy.deepcopy(toy))
        convert(models[-1], plan_of(*bits), table, record, backend=backend, activations=activations)
    cpu, reference = models
    threads = torch.get_num_threads()
    try:
        for seed, (batch, height, width, count) in enumerate(
            [(2, 4, 4, 2), (1, 4, 4, 1), (3, 7, 5, 1), (8, 1, 9, 3), (2, 4, 4, 2)]
        ):
            torch.set_num_threads(count)
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(batch, 3, height, width, generator=generator)
            text = torch.randn(batch, 7, 5, generator=generator)
            text[:, 0] = 8.0
            assert torch.equal(cpu(x, text), reference(x, text))
    finally:
        torch.set_num_threads(threads)


@needs_compiler
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_first_layer_that_meets_a_number_that_is_none_is_named(
    toy: nn.Module, table: LayerTable, record: CalibrationRecord, inputs: Inputs, backend: str
) -> None:
    convert(toy, plan_of("W8A8", "W4A8", "W2A8", "W8A8"), table, record, backend=backend)
    expected = toy(*inputs)
    for value in (torch.nan, torch.inf, -torch.inf):
        for which, index, name in (
            (0, (1, 2, 3, 3), "conv"),
            (1, (1, 4, 0), "block.to_k"),
            (1, (0, 0, 2), "block.to_k"),
        ):
            broken = [tensor.clone() for tensor in inputs]
            broken[which][index] = value
            with pytest.raises(NonFiniteError, match=name) as error:
                toy(*broken)
            assert error.value.where == name
    assert torch.equal(toy(*inputs), expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_linear_layers_take_floats_and_compute_nearly_what_they_did(
    toy: nn.Module,
    table: LayerTable,
    record: CalibrationRecord,
    inputs: Inputs,
    activations: Activations,
    symmetric: bool,
) -> None:
    before, plan = toy(*inputs), plan_of("W8A8", "W8A8 float", "W8A8", "W8A8 float")
    with pytest.raises(NoBackendError, match=r"block\.to_k \(linear, W8A8 float"):
        convert(toy, plan, table, record, activations=activations, backend="cpu")
    receipt = convert(toy, plan, table, record, backend="reference", activations=activations, symmetric=symmetric)
    assert [str(layer.bits) for layer in receipt.layers] == [str(bits) for bits in plan.layers.values()]
    assert toy.out.weight_zero_point is None
    assert toy.out.input_zero_point is None
    after = toy(*inputs)
    # Each factor is off by a 16th at most, by a 28th in the mean square, and sums of them no more.
    assert torch.nn.functional.mse_loss(after, before) < 2 / 28**2 * before.pow(2).mean()
    for name in ("block.to_k", "out"):
        toy.get_submodule(name).use_backend("fp8")
    torch.testing.assert_close(toy(*inputs), after, rtol=2.0**-20, atol=2.0**-20)
