"""From what a user said to a RunConfig, and from a RunConfig to prompts and a loaded model."""

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixdq.config import RunConfig, build_config, load_config
from mixdq.errors import ConfigError, PromptError

if TYPE_CHECKING:
    import torch

    from mixdq.pipeline.family import Pipeline
    from mixdq.sensitivity.engines.base import Engine


TRAVELLING = {"generation", "calibration", "selection", "conversion", "evaluation"}
"""The sections of a run that go along with its plan to another model: how pictures and ranges are made."""

TUNE = "--tune measures the kernels"
"""What is asked of a GPU, of pictures' time and of layers'."""


def configured(
    folder: Path,
    model: str,
    *,
    like: RunConfig | None = None,
    prompts: Path | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    size: int | None = None,
    seed: int | None = None,
    keep: list[str] | None = None,
    backend: str | None = None,
    activations: str | None = None,
) -> RunConfig:
    """Return the settings of the run in `folder`, or fresh ones, with every value given put in.

    Fresh ones are those of the run `like`, but for its model and backend, or else the defaults. A folder with a
    config.toml and no layers.json is no run of a model yet: the one that it names could not be opened.

    Raises:
        ConfigError: the folder holds a run of another model, or a value is out of range.
    """
    path = folder / "config.toml"
    base: dict[str, Any] = {}
    if path.exists():
        found = load_config(path)
        if found.model.path != model and (folder / "layers.json").exists():
            raise ConfigError(f"{folder}: holds a run of {found.model.path!r}; choose another folder for {model!r}")
        base = found.model_dump(mode="python", exclude_none=True)
    elif like is not None:
        base = like.model_dump(mode="python", exclude_none=True, include=TRAVELLING)
        del base["conversion"]["backend"]
    base["model"] = {**base.get("model", {}), "path": model}
    given: dict[str, dict[str, Any]] = {
        "calibration": {"prompts": None if prompts is None else str(prompts)},
        "generation": {
            "steps": steps,
            "guidance_scale": guidance_scale,
            "height": size,
            "width": size,
            "seed": seed,
        },
        "allocation": {"keep": None if keep is None else tuple(keep)},
        "conversion": {"backend": backend, "activations": activations},
    }
    return build_config(_merged(base, given), "options")


def with_budget(
    config: RunConfig,
    *,
    weight_bits: float | None = None,
    activation_bits: float | None = None,
    weight_mib: float | None = None,
    latency_ms: float | None = None,
    program: str | None = None,
    objective: str | None = None,
) -> RunConfig:
    """Return the settings with another budget; what is None stays as it was.

    Bits, MiB and milliseconds take the place of those that there were, all of them. Only the joint program knows
    milliseconds and several of them, and is taken for those unless `program` says otherwise.

    Raises:
        ConfigError: both weight budgets are given to the split program, or one is out of range.
    """
    budgets = {"weight_bits": weight_bits, "weight_bytes": weight_mib, "latency_ms": latency_ms}
    if latency_ms is not None:
        program = program or "joint"
    base = config.model_dump(mode="python", exclude_none=True)
    allocation = base["allocation"]
    if weight_bits is not None and weight_mib is not None and (program or allocation["program"]) == "split":
        raise ConfigError("both weight bits and weight MiB are given: expected one of them, or the joint program")
    if any(value is not None for value in budgets.values()):
        if latency_ms is not None or "latency_ms" in allocation:
            # Its default goes with milliseconds.
            del allocation["activation_bits"]
        for name in budgets:
            allocation.pop(name, None)
    if program is not None and program != allocation["program"]:
        # "raw" and "calibrated" are for one of them each.
        del allocation["objective"]
    given = {
        "program": program,
        "objective": objective,
        "latency_ms": latency_ms,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "weight_bytes": None if weight_mib is None else int(weight_mib * 2**20),
    }
    return build_config(_merged(base, {"allocation": given}), "options")


def expect_gpu(config: RunConfig, asked: str) -> None:
    """Return if a run is on an NVIDIA GPU; ConfigError otherwise, which begins with what was `asked` of such a one."""
    device = device_of(config)
    if not device.startswith("cuda"):
        raise ConfigError(f"{asked} of an NVIDIA GPU, and this run is on {device}: leave it out")


def with_engine(config: RunConfig, *, engine: str | None = None, address: str | None = None) -> RunConfig:
    """Return the settings with another engine for sensitivity; what is None stays as it was.

    Raises:
        ConfigError: an address is given for the engine "local", which has none.
    """
    base = config.model_dump(mode="python", exclude_none=True)
    changed = build_config(_merged(base, {"sensitivity": {"engine": engine, "address": address}}), "options")
    if address is not None and changed.sensitivity.engine == "local":
        raise ConfigError(f"address = {address!r}: the engine 'local' has none; say --engine ray as well")
    return changed


def engine_of(config: RunConfig, *, in_memory: bool) -> "Engine":
    """Return the engine for sensitivity; `in_memory` says that no other process could read the model.

    Raises:
        ConfigError: there is no such engine, or it cannot work with this model.
        ClusterError: its cluster cannot be reached.
    """
    from mixdq.sensitivity.engines import find_engine
    from mixdq.sensitivity.engines.worker import ModelSource

    source = None
    if not in_memory:
        path = Path(config.model.path).expanduser()
        source = ModelSource(
            path=str(path.absolute()) if path.exists() else config.model.path,
            dtype=dtype_of(config),
            device=device_of(config),
            variant=config.model.variant,
        )
    return find_engine(config.sensitivity.engine, source=source, address=config.sensitivity.address)


def calibration_prompts(config: RunConfig) -> tuple[str, ...]:
    """Return the prompts that ranges are found on: the first of the file."""
    return _prompts(config.calibration.prompts)[: config.calibration.num_prompts]


def sensitivity_prompts(config: RunConfig) -> tuple[str, ...]:
    """Return the prompts that layers are measured on."""
    return _prompts(config.sensitivity.prompts or config.calibration.prompts)[: config.sensitivity.num_prompts]


def selection_prompts(config: RunConfig) -> tuple[str, ...]:
    """Return the prompts that plans are chosen on."""
    return _prompts(config.selection.prompts or config.calibration.prompts)[: config.selection.num_prompts]


def evaluation_prompts(config: RunConfig) -> tuple[str, ...]:
    """Return the prompts that the result is judged on: the last of the file, so that few were calibrated on."""
    return _prompts(config.evaluation.prompts or config.calibration.prompts)[-config.evaluation.num_prompts :]


def generation_of(config: RunConfig) -> dict[str, object]:
    """Return the settings that decide what a picture is."""
    made = config.generation.model_dump(mode="json")
    # Pictures of other batch sizes differ by float rounding alone.
    made.pop("batch_size")
    return made


def load_model(config: RunConfig) -> "Pipeline":
    """Return the pipeline that a run is about, in floating point, on its device."""
    from mixdq.pipeline.load import load_pipeline

    return load_pipeline(
        config.model.path, dtype=dtype_of(config), device=device_of(config), variant=config.model.variant
    )


def device_of(config: RunConfig) -> str:
    """Return where models run: as configured, or a GPU if there is one.

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    import torch

    name = config.model.device
    if name != "auto":
        try:
            # The shortest way to find out: torch has no question that covers every kind of device.
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"model.device = {name!r}: torch cannot use it here ({reason}); say 'auto'") from error
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(config: RunConfig) -> "torch.dtype":
    """Return the floating-point type that models run in: as configured, or float16 on a GPU and float32 elsewhere."""
    import torch

    if config.model.dtype == "auto":
        return torch.float16 if device_of(config).startswith("cuda") else torch.float32
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[config.model.dtype]


def _prompts(path: str | None) -> tuple[str, ...]:
    if path is None:
        with as_file(files("mixdq.workflow") / "prompts.txt") as own:
            return read_prompts(own)
    return read_prompts(Path(path))


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the prompts of a file; PromptError where it cannot be used."""
    from mixdq.pipeline.prompts import read_prompts as read

    if path.is_dir():
        raise PromptError(f"{path}: a folder, expected a UTF-8 file of prompts, one a line")
    return read(path)


def _merged(base: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    merged = {section: dict(values) for section, values in base.items()}
    for section, values in given.items():
        merged.setdefault(section, {}).update({key: value for key, value in values.items() if value is not None})
    return merged
