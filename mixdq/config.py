"""config.toml <-> RunConfig: everything a run can be told, in the order of its steps.

Every key has a default but `model.path`; unknown keys, wrong types and values out of range are refused, all complaints
at once. Names that belong to a room (estimators, metrics, backends, engines) are checked by that room.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mixdq.errors import ConfigError
from mixdq.types.layers import GROUPS, Group
from mixdq.types.plan import ACTIVATION_CHOICES, FLOAT_BITS, WEIGHT_CHOICES, Activations, Budget, check_bits

Positive = Annotated[int, Field(ge=1)]
Bits = Annotated[float, Field(ge=2, le=16)]
Widths = Annotated[
    tuple[Annotated[int, AfterValidator(check_bits)], ...],
    Field(strict=False, min_length=1),
    AfterValidator(lambda widths: tuple(sorted(set(widths)))),
]
Choices = dict[Group, Widths]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """What to quantize: a diffusers folder or hub id, and how to load it."""

    path: str = Field(min_length=1)
    variant: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: str = Field(default="auto", min_length=1)


class GenerationConfig(_Section):
    """How pictures are made in every step; few-step models want few steps and no guidance."""

    steps: Positive = 1
    guidance_scale: float = Field(default=0.0, ge=0)
    height: Positive | None = None
    width: Positive | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    batch_size: Positive = 4


class CalibrationConfig(_Section):
    """Where activation ranges come from: prompts (None: those of the package) and an estimator."""

    prompts: str | None = None
    num_prompts: Positive = 64
    estimator: str = "moving_average"
    batch_size: Positive = 8


class SensitivityConfig(_Section):
    """How the cost of each layer is measured, and by whom: `engine` is "local", or "ray" for a cluster.

    `address` is the Ray cluster's, "host:port" or "auto"; without one it is started on this machine. `method` is
    "exact", every row as published; "sketch", all rows estimated from some backward passes, 32 a picture at most, to a
    standard error of `tolerance` of the median row's loss; or "hybrid", sketched, and the share `exact_share` of the
    rows that matter most measured exactly. `checkpointing` saves memory in backward passes at the cost of time.
    """

    prompts: str | None = None
    num_prompts: Positive = 4
    ssim_window: int = Field(default=11, ge=3)
    engine: str = "local"
    address: str | None = None
    method: Literal["exact", "sketch", "hybrid"] = "hybrid"
    tolerance: float = Field(default=0.25, gt=0)
    exact_share: float = Field(default=0.08, ge=0, le=1)
    checkpointing: bool = False

    @model_validator(mode="after")
    def _odd_window(self) -> Self:
        if self.ssim_window % 2 == 0:
            raise ValueError(f"ssim_window = {self.ssim_window}: a window has a middle, so its width is odd")
        return self


class AllocationConfig(_Section):
    """What may be spent, and how the best way to spend it is found.

    Without a budget for weights or time, 4 bits. "split" is the published way: a program for each group, for weights
    and for activations, swept over the share of content against quality, under `weight_bits` or `weight_bytes`; the
    pictures decide. "joint" is one program for everything, under any budgets together, `latency_ms` of one denoiser
    call among them; 16 bits are a candidate of every activation there, and of every weight under `latency_ms`, so
    `protect`, `ratios` and `max_plans` do not count. The objective is "linear"; for "split" it can be "raw", as
    published, and for "joint" "calibrated", by the pictures of `fit_plans` whole plans. `pairs` is how many pairs of
    layers that interact "joint" takes into account at most; they are found in the vectors of a sketch.
    """

    program: Literal["split", "joint"] = "split"
    weight_bits: Bits | None = None
    weight_bytes: Positive | None = None
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    activation_bits: Bits = 8.0
    weight_choices: Choices = dict(WEIGHT_CHOICES)
    activation_choices: Choices = dict(ACTIVATION_CHOICES)
    protect: float = Field(default=0.01, ge=0, le=1)
    keep: tuple[str, ...] = Field(default=(), strict=False)
    objective: Literal["raw", "linear", "calibrated"] = "linear"
    fit_plans: Annotated[int, Field(ge=8)] = 32
    pairs: Annotated[int, Field(ge=0)] = 0
    ratios: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1)] | None = None
    max_plans: Positive = 12

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        given = {name for name in ("weight_bits", "weight_bytes", "latency_ms") if data.get(name) is not None}
        missing: dict[str, Any] = {} if given else {"weight_bits": 4.0}
        if "latency_ms" in given:
            # Time alone decides, unless bits are limited too.
            missing["activation_bits"] = float(FLOAT_BITS)
        return {**missing, **{name: value for name, value in data.items() if value is not None}}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.program == "split":
            self._check_split()
        elif self.objective == "raw":
            raise ValueError(
                "objective = 'raw' beside program = 'joint': decibels and SSIM do not add up; "
                "take 'linear' or 'calibrated'"
            )
        for name, choices in (("weight_choices", self.weight_choices), ("activation_choices", self.activation_choices)):
            if set(choices) != set(GROUPS):
                raise ValueError(f"{name} names {sorted(choices)}: expected widths for both {' and '.join(GROUPS)}")
        return self

    def _check_split(self) -> None:
        if self.weight_bits is not None and self.weight_bytes is not None:
            raise ValueError("weight_bits and weight_bytes are both given: expected one of them, or program = 'joint'")
        if self.pairs or self.latency_ms is not None or self.objective == "calibrated":
            asked = "latency_ms" if self.latency_ms is not None else "objective = 'calibrated'"
            asked = f"pairs = {self.pairs}" if self.pairs else asked
            raise ValueError(f"{asked} needs program = 'joint'; this run's program is 'split'")
        floating = self.weight_bits == FLOAT_BITS or any(
            FLOAT_BITS in widths for widths in self.weight_choices.values()
        )
        if floating and self.activation_bits < FLOAT_BITS:
            raise ValueError(
                f"activation_bits = {self.activation_bits:g} beside weights of {FLOAT_BITS} bits: no kernel quantizes "
                f"the input of a floating-point weight. Set activation_bits = {FLOAT_BITS}, take {FLOAT_BITS} from the "
                "weights, or name the layers to leave alone in keep"
            )

    def budget(self, names: Iterable[str]) -> Budget:
        """Return the budget for a model with layers of these names; ConfigError where a pattern matches none."""
        return Budget(
            weight_bits=self.weight_bits,
            weight_bytes=self.weight_bytes,
            latency_ms=self.latency_ms,
            activation_bits=self.activation_bits,
            weight_choices=self.weight_choices,
            activation_choices=self.activation_choices,
            protect=self.protect,
            keep=match_layers(self.keep, names, setting="allocation.keep"),
        )


class SelectionConfig(_Section):
    """How the best of the found plans is chosen: by pictures of these prompts."""

    prompts: str | None = None
    num_prompts: Positive = 8
    metric: str = "ssim"


class ConversionConfig(_Section):
    """How the chosen plan is carried out; all but `backend` hold for sensitivity and selection as well.

    `backend` is a name or "auto", the fastest that can run each layer; see `mixdq doctor`. `activations` are "static",
    scaled as calibrated, or "dynamic", scaled at run time: each row of a Linear's input, each picture of a Conv2d's.
    """

    backend: str = "auto"
    symmetric: bool = True
    rounding: str = "nearest"
    activations: Activations = "static"


class EvaluationConfig(_Section):
    """What the quantized model is judged by, against floating point.

    `clip_model` is a folder or hub id of a CLIP model for the CLIP score; without one there is that score only for a
    model that brings its own image tower.
    """

    prompts: str | None = None
    num_prompts: Positive = 16
    metrics: tuple[str, ...] = Field(default=("ssim", "psnr", "sqnr", "clip_score"), strict=False, min_length=1)
    clip_model: str | None = None


class RunConfig(_Section):
    """A whole run; frozen, equal where its values are.

    >>> RunConfig(model=ModelConfig(path="stabilityai/sdxl-turbo")).allocation.weight_bits
    4.0
    """

    model: ModelConfig
    generation: GenerationConfig = GenerationConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    sensitivity: SensitivityConfig = SensitivityConfig()
    allocation: AllocationConfig = AllocationConfig()
    selection: SelectionConfig = SelectionConfig()
    conversion: ConversionConfig = ConversionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def load_config(path: Path) -> RunConfig:
    """Return the settings of a config.toml; ConfigError where it is missing or anything in it is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file; a least one says\n\n[model]\npath = '...'") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    return parse_config(text, str(path))


def parse_config(text: str, where: str = "config.toml") -> RunConfig:
    """Return the settings that TOML `text` writes down; `where` begins the error texts."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not TOML: {error}") from error
    return build_config(data, where)


def build_config(data: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Return the settings of nested mappings; ConfigError lists every complaint."""
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        complaints = [_complaint(one["type"], one["loc"], one["msg"], one["input"]) for one in error.errors()]
        raise ConfigError("\n".join(f"{where}: {complaint}" for complaint in complaints)) from error


def dump_config(config: RunConfig) -> str:
    """Return the settings as TOML; `parse_config` gives them back, and equal settings give equal text."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def match_layers(patterns: Sequence[str], names: Iterable[str], *, setting: str = "keep") -> tuple[str, ...]:
    """Return the names that any of the patterns (`*`, `?`, `[...]`) matches, in the order of `names`.

    Raises:
        ConfigError: a pattern matches nothing; names the nearest layers.

    >>> match_layers(["conv_*"], ["conv_in", "mid.proj", "conv_out"])
    ('conv_in', 'conv_out')
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise ConfigError(
                f"{setting}: the pattern {pattern!r} matches none of the model's {len(names)} layers. "
                f"Such names are {', '.join(near)}; `mixdq inspect` lists them all."
            )
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def _complaint(kind: str, loc: tuple[int | str, ...], message: str, got: object) -> str:
    key = ".".join(str(step) for step in loc)
    if kind == "extra_forbidden":
        known = _keys_beside(loc)
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key {key}; {hint}The keys there are {', '.join(known)}."
    if kind == "missing":
        return f"{key} is missing, and has no default; add it."
    expected = message.removeprefix("Value error, ").removeprefix("Input should be ").replace("valid tuple", "list")
    return f"{key}: expected {expected}, got {got!r:.80}." if kind != "value_error" else f"{key}: {expected}."


def _keys_beside(loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known where an unknown one was found."""
    section: type[BaseModel] = RunConfig
    for step in loc[:-1]:
        field = section.model_fields.get(str(step))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            break
        section = field.annotation
    return list(section.model_fields)
