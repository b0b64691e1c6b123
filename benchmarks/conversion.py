"""What converting SDXL's UNet takes of memory: before, at most while it runs, after, and with every kernel bound.

One process, one plan of the same bits for every layer, and the conversion that `mixdq apply` does. Weights are random.
"""

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from rich.table import Table
from torch import Tensor, nn

from benchmarks import measuring, sdxl
from benchmarks.case import SIZES, random_unet, stored_bytes
from mixdq.conversion.convert import convert
from mixdq.evaluation.memory import peak_resident_bytes, reset_peak_resident, resident_bytes
from mixdq.pipeline.families.unet import UNetFamily
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import BitPlan, LayerBits
from mixdq.types.tensors import ActivationRange, CalibrationRecord

MIB = 2**20
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def main(argv: Sequence[str] | None = None) -> None:
    """Build, convert, call; print what each took, and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversion", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="cut", help="full: 2.57 G weights; cut: 0.90 G")
    parser.add_argument("--smoke", action="store_true", help="a tiny one: does it run")
    parser.add_argument("--bits", default="W4A8", type=LayerBits.parse, help="of every layer, such as W8A8")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the float model")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--side", type=int, default=64, help="of the latent; 64 is 512 px")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args(argv)
    if arguments.smoke:
        arguments.size, arguments.side = "smoke", 16
    if resident_bytes() is None or not reset_peak_resident():
        parser.error("this system does not tell resident memory and its peak; Linux does")
    row = measure(arguments.size, arguments.bits, DTYPES[arguments.dtype], arguments.backend, arguments.side)
    measuring.console().print(table(row, f"{arguments.size}, {arguments.dtype} to {arguments.bits}"))
    if arguments.json:
        facts = {name: str(getattr(arguments, name)) for name in ("size", "bits", "dtype", "backend", "side")}
        measuring.write_json(arguments.json, [row], **facts)


def measure(size: str, bits: LayerBits, dtype: torch.dtype, backend: str, side: int) -> dict[str, int]:
    """Return bytes: of weights as stored, and resident in this process, less what it took before there was a model."""
    libraries = _resident()
    model = random_unet(*SIZES[size], dtype)
    row = {"float weights": sum(parameter.nbytes for parameter in model.parameters())}
    layers = table_of(model)
    row["largest layer"] = max(model.get_submodule(spec.name).weight.nbytes for spec in layers)
    plan = BitPlan(name=str(bits), layers={spec.name: bits for spec in layers})
    row["before"] = _resident() - libraries
    reset_peak_resident()
    convert(model, plan, layers, record_of(layers), backend=backend)
    row["peak while converting"] = peak_resident_bytes() - libraries
    row["after"] = _resident() - libraries
    row["quantized weights"] = stored_bytes(model)
    for call in ("first", "second"):
        reset_peak_resident()
        with torch.inference_mode():
            model(**sdxl.inputs(1, side, dtype))
        row[f"peak in the {call} call"] = peak_resident_bytes() - libraries
        row[f"after the {call} call"] = _resident() - libraries
    return row


def table_of(model: UNet2DConditionModel) -> LayerTable:
    """Return every Linear and Conv2d as the SDXL family lists them, but for work counts, which conversion ignores."""
    family = UNetFamily()
    splits = family.input_splits(model)
    return LayerTable(
        model="random",
        family="sdxl",
        digest="",
        layers=tuple(
            LayerSpec(
                name=name,
                op="linear" if isinstance(module, nn.Linear) else "conv2d",
                group=family.group(name),
                weight_shape=tuple(module.weight.shape),
                input_numel=1,
                macs=1,
                bos=family.is_bos(name),
                input_splits=splits.get(name, ()),
            )
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        ),
    )


def record_of(layers: LayerTable) -> CalibrationRecord:
    """Return made-up ranges, on which memory does not depend, and BOS rows for the texts of `sdxl.inputs`."""
    made_up = ActivationRange(min=-4.0, max=4.0, batches=1)
    return CalibrationRecord(
        ranges={spec.name: (made_up,) * max(1, len(spec.input_splits)) for spec in layers},
        bos_input=torch.ones(sdxl.TEXT_WIDTH),
        bos_outputs={spec.name: _zeros(spec) for spec in layers if spec.bos},
    )


def table(row: dict[str, int], title: str) -> Table:
    """Return the numbers in MiB, and as a share of the float weights."""
    made = Table(title=f"Converting SDXL's UNet: {title}")
    for name in ("", "MiB", "of the float weights"):
        made.add_column(name, justify="right" if name else "left")
    for name, size in row.items():
        made.add_row(name, f"{size / MIB:.0f}", f"{size / row['float weights']:.2f}")
    return made


def _zeros(spec: LayerSpec) -> Tensor:
    return torch.zeros(spec.weight_shape[0])


def _resident() -> int:
    gc.collect()
    found = resident_bytes()
    assert found is not None
    return found


if __name__ == "__main__":
    main()
