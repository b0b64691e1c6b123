"""calibration.safetensors: ranges and BOS rows.

Ranges are in the header (`tensor_header`); tensors are "bos_input" and "bos_output/<layer>".
"""

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from mixdq.store.artifact import Schema, atomic_write, bad_format, read_bytes
from mixdq.store.json_file import decode, encode
from mixdq.store.tensor_header import read_tensor_header, tensor_header
from mixdq.types.tensors import ActivationRange, CalibrationRecord

CALIBRATION = Schema("calibration", "mixdq calibrate")

MAX_RECORD_BYTES = 2**30

_Ranges = dict[str, tuple[ActivationRange, ...]]
_INPUT, _OUTPUT = "bos_input", "bos_output/"


def write_record(path: Path, record: CalibrationRecord) -> None:
    """Write a calibration record, atomically; equal records give equal bytes."""
    rows = {_OUTPUT + layer: row for layer, row in record.bos_outputs.items()}
    if record.bos_input is not None:
        rows[_INPUT] = record.bos_input
    tensors = {name: row.detach().cpu().contiguous().clone() for name, row in rows.items()}
    header = tensor_header(CALIBRATION, {"ranges": encode(_Ranges, dict(record.ranges))}, record.origin)
    atomic_write(path, safetensors.torch.save(tensors, metadata=header))


def read_record(path: Path) -> CalibrationRecord:
    """Return the record of a file; ArtifactError where it is missing, foreign, damaged, newer, or not finite."""
    data = read_bytes(path, CALIBRATION, MAX_RECORD_BYTES)
    header, origin = read_tensor_header(path, data, CALIBRATION)
    ranges = decode(path, CALIBRATION, _Ranges, header.pop("ranges", None))
    if header:
        raise bad_format(path, CALIBRATION, f"unknown key {min(header)!r}")
    rows = _tensors(path, data)
    bos_input = rows.pop(_INPUT, None)
    outputs = {name.removeprefix(_OUTPUT): row for name, row in rows.items()}
    # safetensors sorts by name; the layers' own order is that of the ranges.
    order = {layer: place for place, layer in enumerate(ranges)}
    return CalibrationRecord(
        ranges=ranges,
        bos_input=bos_input,
        bos_outputs={name: outputs[name] for name in sorted(outputs, key=lambda name: (order.get(name, -1), name))},
        origin=origin,
    )


def _tensors(path: Path, data: bytes) -> dict[str, torch.Tensor]:
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise bad_format(path, CALIBRATION, f"its tensors cannot be read ({error})") from error
    for name, row in tensors.items():
        if name != _INPUT and not name.startswith(_OUTPUT):
            raise bad_format(path, CALIBRATION, f"unknown tensor {name!r}")
        if row.dim() != 1 or row.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise bad_format(path, CALIBRATION, f"{name} is {row.dtype} of shape {tuple(row.shape)}")
        if not torch.isfinite(row).all():
            raise bad_format(path, CALIBRATION, f"{name} holds NaN or infinity")
    return tensors
