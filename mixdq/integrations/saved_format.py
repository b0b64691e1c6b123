"""What a saved model says of itself in its denoiser's config.json, under `quantization_config`; plain JSON and back.

    quant_method     "mixdq"
    format_version   1, or 2 where a layer is W8A8 float, which readers of 1 do not know
    backend          what ran it when it was saved: "auto" or a name
    symmetric        whether weights have no zero points
    activations      "dynamic" where inputs are scaled at run time; absent where they are as calibrated
    plan             name, layers ("W4A8" or "W8A8 float" each), budget, solver, origin: the whole BitPlan
    input_splits     layer -> channels of each part of its joined input
    bos_layers       layers with a stored first-token row
    calibration      what the ranges were made from -> digest

The tensors themselves are described in `mixdq.runtime.layout`. Files come from anywhere: everything is checked here.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mixdq.errors import ArtifactFormatError
from mixdq.runtime.layout import LayerLayout
from mixdq.types.plan import FLOAT_BITS, Activations, BitPlan, Budget, LayerBits, SolverFacts, is_dynamic

METHOD = "mixdq"
FORMAT_VERSION = 2
MAX_LAYERS = 100_000
"""More layers than any denoiser has; a config beyond it is hostile."""

_KEYS = {
    "quant_method",
    "format_version",
    "backend",
    "symmetric",
    "plan",
    "input_splits",
    "bos_layers",
    "calibration",
}
_OPTIONAL = {"activations"}
_SHOWN = 300
"""Characters of a complaint: a hostile name may have millions."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """All of `quantization_config` but the method's name; the fields are those of the module's docstring."""

    plan: BitPlan
    symmetric: bool = True
    activations: Activations = "static"
    input_splits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bos_layers: tuple[str, ...] = ()
    calibration: Mapping[str, str] = field(default_factory=dict)

    def layouts(self) -> dict[str, LayerLayout]:
        """Return the layout of every layer with a quantized weight, in the plan's order."""
        bos, dynamic = set(self.bos_layers), is_dynamic(self.activations)
        return {
            name: LayerLayout(
                name=name,
                bits=bits,
                symmetric=self.symmetric or bits.is_float,
                splits=self.input_splits.get(name, ()),
                bos=name in bos,
                dynamic=dynamic,
            )
            for name, bits in self.plan.layers.items()
            if bits.weight != FLOAT_BITS
        }


def to_json(saved: SavedModel, backend: str) -> dict[str, Any]:
    """Return plain JSON values: dicts, lists, strings, numbers, booleans and None."""
    plan = saved.plan
    return {
        "quant_method": METHOD,
        "format_version": _version(plan),
        "backend": backend,
        "symmetric": saved.symmetric,
        # A reader that does not know the key refuses the model rather than run it wrongly.
        **({"activations": saved.activations} if is_dynamic(saved.activations) else {}),
        "plan": {
            "name": plan.name,
            "layers": {name: str(bits) for name, bits in plan.layers.items()},
            "budget": None if plan.budget is None else _plain(asdict(plan.budget)),
            "solver": None if plan.solver is None else _plain(asdict(plan.solver)),
            "origin": dict(plan.origin),
        },
        "input_splits": {name: list(splits) for name, splits in saved.input_splits.items()},
        "bos_layers": list(saved.bos_layers),
        "calibration": dict(saved.calibration),
    }


def from_json(config: Mapping[str, Any]) -> tuple[SavedModel, str]:
    """Return what `to_json` was given: the saved model and its backend.

    Raises:
        ArtifactFormatError: written by a newer MixDQ, or not of this format; says where.
    """
    version = _take(config, "format_version", int)
    if not 1 <= version <= FORMAT_VERSION:
        advice = "update mixdq" if version > FORMAT_VERSION else "the file is damaged"
        raise ArtifactFormatError(
            f"quantization_config: format_version = {version!s:.20}, this mixdq reads 1 to {FORMAT_VERSION}; {advice}."
        )
    odd = sorted(map(str, (config.keys() - _OPTIONAL) ^ _KEYS))
    if odd:
        raise ArtifactFormatError(f"quantization_config: missing or unknown keys {odd[:8]!s:.{_SHOWN}}")
    if config["quant_method"] != METHOD:
        raise ArtifactFormatError(
            f"quantization_config: quant_method = {config['quant_method']!r:.80}, expected {METHOD!r}"
        )
    try:
        plan = _plan(_take(config, "plan", dict))
        if version != _version(plan):
            raise ValueError(f"format_version = {version}, but a plan of such layers is {_version(plan)}")
        saved = SavedModel(
            plan=plan,
            symmetric=_take(config, "symmetric", bool),
            activations=_activations(config.get("activations", "static")),
            input_splits={
                _known(name, plan): tuple(_positive(part) for part in splits)
                for name, splits in _take(config, "input_splits", dict).items()
            },
            bos_layers=tuple(dict.fromkeys(_known(name, plan) for name in _take(config, "bos_layers", list))),
            calibration=_texts(_take(config, "calibration", dict)),
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactFormatError(f"quantization_config: {error!s:.{_SHOWN}}") from error
    return saved, _take(config, "backend", str)


def _version(plan: BitPlan) -> int:
    """Return the least version that can say a plan, so that older readers open all they can."""
    return 2 if any(bits.is_float for bits in plan.layers.values()) else 1


def _plan(values: Mapping[str, Any]) -> BitPlan:
    if values.keys() != {"name", "layers", "budget", "solver", "origin"}:
        raise ValueError(f"plan: missing or unknown keys among {sorted(map(str, values))[:8]}")
    layers = _take(values, "layers", dict)
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"plan: {len(layers)} layers")
    return BitPlan(
        name=_take(values, "name", str),
        layers={name: LayerBits.parse(_text(bits)) for name, bits in layers.items()},
        budget=None if values["budget"] is None else _typed("plan.budget", Budget, values["budget"]),
        solver=None if values["solver"] is None else _typed("plan.solver", SolverFacts, values["solver"]),
        origin=_texts(_take(values, "origin", dict)),
    )


def _activations(value: Any) -> Activations:
    if value not in ("static", "dynamic"):
        raise ValueError(f"activations = {value!r}: expected 'static' or 'dynamic'")
    return "dynamic" if value == "dynamic" else "static"


def _typed(where: str, kind: type[T], values: Any) -> T:
    """Return JSON values as a dataclass, each of its field's type and none besides."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, (where, *first['loc'])))}: {first['msg']}") from error


def _plain(value: Any) -> Any:
    """Return `value` with tuples as lists and keys as strings, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _take(values: Mapping[str, Any], key: str, kind: type) -> Any:
    found = values.get(key)
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise ArtifactFormatError(f"quantization_config: {key} must be {kind.__name__}, found {type(found).__name__}")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def _texts(values: Mapping[Any, Any]) -> dict[str, str]:
    return {_text(key): _text(value) for key, value in values.items()}


def _positive(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ValueError(f"{value!r} is not a number of channels")
    return value


def _known(name: Any, plan: BitPlan) -> str:
    if _text(name) not in plan.layers:
        raise ValueError(f"{name!r} is no layer of the plan")
    return str(name)
