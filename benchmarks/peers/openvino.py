"""OpenVINO: the float model, and int8 by NNCF's post-training quantization as OpenVINO's own guides do it for UNets.

Both are made once and kept in the cache: converting and quantizing take minutes and several times the model's memory.
"""

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import sdxl
from benchmarks.case import SIZES, Candidate, Case, Loaded
from benchmarks.peers import versions

INPUTS = ("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids")

# As they were when they were read: a file may be edited while this runs.
_SOURCES = b"".join(Path(str(file)).read_bytes() for file in (__file__, sdxl.__file__))


def floating(precision: str) -> Candidate:
    """Return the float model (float16 in its file), computed in `precision`: "f32" or "bf16"."""
    compute = 4 if precision == "f32" else 2
    return Candidate(
        load=lambda case: _load(float_file(case), case, precision), steps=(convert,), held=2 + compute, loading=6
    )


def int8(precision: str) -> Candidate:
    """Return the quantized model; what is not int8 in it is computed in `precision`."""
    return Candidate(
        load=lambda case: _load(int8_file(case), case, precision), steps=(convert, quantize), held=2, loading=3
    )


def float_file(case: Case) -> Path:
    """Return where the converted model is, or will be."""
    return _file(case, "float", versions("openvino", "torch", "diffusers"))


def int8_file(case: Case) -> Path:
    """Return where the quantized model is, or will be."""
    return _file(case, "int8", versions("openvino", "nncf", "torch", "diffusers"))


def convert(case: Case) -> None:
    """Write the float model if it is not there; its weights take float16's bytes."""
    if float_file(case).exists():
        return
    import openvino

    model, example = _ByPosition(case.unet(torch.float32)), _example(case)
    with torch.no_grad():
        converted = openvino.convert_model(model, example_input=example)
    converted.reshape({index: list(tensor.shape) for index, tensor in enumerate(example)})
    _save(float_file(case), lambda path: openvino.save_model(converted, path, compress_to_fp16=True))


def quantize(case: Case) -> None:
    """Write the int8 model if it is not there, from the float one.

    Calibrated on one input: ranges decide pictures, not time; and so do corrected biases, which are left out.
    """
    if int8_file(case).exists():
        return
    import nncf
    import openvino

    model = openvino.Core().read_model(float_file(case))
    quantized = nncf.quantize(
        model,
        nncf.Dataset([[tensor.numpy() for tensor in _example(case)]]),
        subset_size=1,
        model_type=nncf.ModelType.TRANSFORMER,
        advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    _save(int8_file(case), lambda path: openvino.save_model(quantized, path))


class _ByPosition(nn.Module):
    """The UNet with tensors as its only arguments."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, pooled: Tensor, time_ids: Tensor) -> Tensor:
        more = {"text_embeds": pooled, "time_ids": time_ids}
        output: Tensor = self.unet(sample, timestep, text, added_cond_kwargs=more, return_dict=False)[0]
        return output


def _example(case: Case) -> tuple[Tensor, ...]:
    arguments = case.inputs(torch.float32)
    more = arguments.pop("added_cond_kwargs")
    assert isinstance(more, dict)
    values = {**arguments, **more}
    return tuple(values[name].float().contiguous() for name in INPUTS)


def _load(path: Path, case: Case, precision: str) -> Loaded:
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    arguments = [tensor.numpy() for tensor in _example(case)]

    @functools.cache
    def request() -> Any:
        # Packs the weights: a part of the first call, as it is with our kernels.
        return openvino.Core().compile_model(path, "CPU", options).create_infer_request()

    return Loaded(lambda: request().infer(arguments), path.with_suffix(".bin").stat().st_size)


def _file(case: Case, kind: str, packages: dict[str, str]) -> Path:
    """Return a path that differs whenever the model, its inputs, a package or what makes it differs."""
    facts = repr((SIZES[case.size], case.batch, case.side, sorted(packages.items()))).encode() + _SOURCES
    name = f"openvino-{kind}-{case.size}-{case.batch}x{case.side}-{hashlib.sha256(facts).hexdigest()[:16]}.xml"
    return case.cache / name


def _save(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside `path`, then swap; the weights first, so that a model that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        write(made)
        for part in (made.with_suffix(".bin"), made):
            os.replace(part, path.with_suffix(part.suffix))
