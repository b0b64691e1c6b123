"""Layers that compute as if quantized by a plan, for as long as a `with` block lasts: `simulate` told by the records.

What each layer needs (parts, ranges, BOS row) is looked up in the layer table and the calibration record.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import Tensor, nn

from mixdq.errors import CalibrationError
from mixdq.quant.bos import BosRow
from mixdq.quant.simulate import QuantizableLayer, input_quantizer, simulated_layer
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import FLOAT_BITS, Activations, LayerBits, is_dynamic
from mixdq.types.tensors import ActivationRange, CalibrationRecord


def simulated_spec(
    denoiser: nn.Module,
    layer: LayerSpec,
    bits: LayerBits,
    record: CalibrationRecord,
    *,
    symmetric: bool = True,
    rounding: str = "nearest",
    activations: Activations = "static",
) -> AbstractContextManager[None]:
    """Simulate one layer of a denoiser at `bits`; everything is put back at the end of the block.

    Raises:
        CalibrationError: the record lacks the range or the BOS row that the layer needs.
    """
    dynamic = is_dynamic(activations)
    ranges = () if dynamic or bits.activation == FLOAT_BITS else _ranges(layer, record)
    module = denoiser.get_submodule(layer.name)
    assert isinstance(module, nn.Linear | nn.Conv2d)
    return simulated_layer(
        module,
        bits,
        ranges=ranges,
        symmetric=symmetric,
        splits=layer.input_splits,
        bos=_bos_row(layer, record),
        rounding=rounding,
        dynamic=dynamic,
        name=layer.name,
    )


def spec_input_quantizer(
    module: QuantizableLayer,
    layer: LayerSpec,
    num_bits: int,
    record: CalibrationRecord,
    *,
    activations: Activations = "static",
) -> Callable[[Tensor], Tensor]:
    """Return what fake-quantizes a float32 input of a layer of the table, its first token being left out if it is BOS.

    Raises:
        CalibrationError: the record lacks the range that the layer needs.
    """
    dynamic = is_dynamic(activations)
    return input_quantizer(
        module,
        num_bits,
        ranges=() if dynamic else _ranges(layer, record),
        splits=layer.input_splits,
        dynamic=dynamic,
        name=layer.name,
    )


@contextmanager
def simulated_plan(
    denoiser: nn.Module,
    table: LayerTable,
    bits: Mapping[str, LayerBits],
    record: CalibrationRecord,
    *,
    symmetric: bool = True,
    rounding: str = "nearest",
    activations: Activations = "static",
) -> Iterator[None]:
    """Simulate every layer of `table` at its `bits` together; layers that `bits` does not name stay as they are."""
    with ExitStack() as stack:
        for layer in table:
            if layer.name in bits:
                simulation = simulated_spec(
                    denoiser,
                    layer,
                    bits[layer.name],
                    record,
                    symmetric=symmetric,
                    rounding=rounding,
                    activations=activations,
                )
                stack.enter_context(simulation)
        yield


def _ranges(layer: LayerSpec, record: CalibrationRecord) -> tuple[ActivationRange, ...]:
    ranges = record.ranges.get(layer.name, ())
    if len(ranges) != max(1, len(layer.input_splits)):
        raise CalibrationError(f"{layer.name}: the calibration has no range for its input; calibrate this model again")
    return ranges


def _bos_row(layer: LayerSpec, record: CalibrationRecord) -> BosRow | None:
    if not layer.bos:
        return None
    output = record.bos_outputs.get(layer.name)
    if record.bos_input is None or output is None:
        raise CalibrationError(f"{layer.name}: the calibration has no BOS row for it; calibrate this model again")
    return BosRow(input=record.bos_input, output=output)
