"""`MixDQConfig`: what to do with a float model while it loads, or what was done with one that is quantized already."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Self

from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from mixdq.errors import ConfigError
from mixdq.integrations.saved_format import METHOD, SavedModel, from_json, to_json
from mixdq.runtime.select import AUTO, check_backend
from mixdq.types.plan import FLOAT_BITS, MAX_BITS, MIN_BITS, Activations, Number, is_dynamic


class MixDQMethod(str, Enum):  # noqa: UP042  (diffusers' own is of this kind, and reads `.value`)
    """The name of the method, as diffusers wants it."""

    MIXDQ = METHOD


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to quantize a float model without calibration: every layer alike. The fields are those of `MixDQConfig`."""

    weight_bits: int = 8
    activation_bits: int = FLOAT_BITS
    activations: Activations = "static"
    number: Number = "int"
    symmetric: bool = True
    modules_to_not_convert: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        widths = range(MIN_BITS, MAX_BITS + 1)
        if type(self.weight_bits) is not int or self.weight_bits not in widths:
            raise ConfigError(f"weight_bits = {self.weight_bits!r}: expected {MIN_BITS} to {MAX_BITS}")
        if type(self.activation_bits) is not int or self.activation_bits not in (*widths, FLOAT_BITS):
            raise ConfigError(
                f"activation_bits = {self.activation_bits!r}: expected {MIN_BITS} to {MAX_BITS}, "
                f"or {FLOAT_BITS} for floating point"
            )
        if type(self.symmetric) is not bool:
            raise ConfigError(f"symmetric = {self.symmetric!r}: expected True or False")
        if not is_dynamic(self.activations) and self.activation_bits != FLOAT_BITS:
            raise ConfigError(
                f"activation_bits = {self.activation_bits} with static scales needs calibration. Run `mixdq quantize "
                f"MODEL -o OUT --weight-bits {self.weight_bits} --activation-bits {self.activation_bits}` and open "
                'OUT/model, or pass activations="dynamic".'
            )
        if self.number not in ("int", "float"):
            raise ConfigError(f"number = {self.number!r}: expected 'int' or 'float'")
        if self.number == "float" and not self.weight_bits == self.activation_bits == 8:
            raise ConfigError(
                f"number = 'float' with weight_bits = {self.weight_bits} and activation_bits = {self.activation_bits}: "
                "E4M3 floats have 8 bits, so expected 8 and 8"
            )
        if not all(isinstance(name, str) and name for name in self.modules_to_not_convert):
            raise ConfigError(f"modules_to_not_convert = {self.modules_to_not_convert!r}: expected names of modules")


class MixDQConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What `from_pretrained(..., quantization_config=...)` takes, and what a quantized denoiser's `config` holds.

    Made by hand, it says how to quantize a float model while it loads, without calibration. The model's own config
    then holds another one, whose `saved` tells every layer's bits; `describing` makes that kind.

    Args:
        weight_bits: of every Linear and Conv2d, 2 to 8.
        activation_bits: of their inputs, 2 to 8; 16 leaves them in floating point.
        activations: "dynamic" scales inputs at run time, each token or picture by itself. "static" scales come from
            calibration, which loading does not do: run `mixdq quantize`.
        number: "float" makes Linear layers W8A8 float, of E4M3 numbers, which needs 8 bits on both sides;
            convolutions stay W8A8 of integers.
        symmetric: False gives weights zero points; floats have none.
        modules_to_not_convert: names of modules that stay in floating point with all that is in them, as they appear
            in dotted paths: "conv_in", "time_embedding", "attn2.to_k", "mid_block.resnets.0".
        backend: what runs the layers: "auto" or a name.

    Raises:
        ConfigError: a value is out of range, or needs calibration.
    """

    source: Recipe | SavedModel

    def __init__(
        self,
        *,
        weight_bits: int = 8,
        activation_bits: int = FLOAT_BITS,
        activations: Activations = "static",
        number: Number = "int",
        symmetric: bool = True,
        modules_to_not_convert: Sequence[str] | None = None,
        backend: str = AUTO,
    ) -> None:
        names = modules_to_not_convert or ()
        self.quant_method = MixDQMethod.MIXDQ
        self.backend = check_backend(backend)
        self.source = Recipe(
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            activations=activations,
            number=number,
            symmetric=symmetric,
            modules_to_not_convert=(names,) if isinstance(names, str) else tuple(names),
        )

    @classmethod
    def describing(cls, saved: SavedModel, *, backend: str = AUTO) -> Self:
        """Return the config of a model that is quantized already."""
        config = cls(backend=backend)
        config.source = saved
        return config

    @property
    def saved(self) -> SavedModel:
        """What was done, layer by layer; ConfigError where nothing is done yet."""
        if isinstance(self.source, Recipe):
            raise ConfigError(
                "This MixDQConfig says what to do with a float model; what was done, model.config.quantization_config "
                "tells once it is loaded."
            )
        return self.source

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Return the config that `to_dict` wrote.

        Raises:
            ArtifactFormatError: the values describe a quantized model, and cannot.
            ConfigError: they say what to do, with an unknown key or a value out of range.
        """
        if config_dict.keys() & {"plan", "format_version"}:
            saved, backend = from_json(config_dict)
            config = cls.describing(saved, backend=backend)
        else:
            values = {key: value for key, value in config_dict.items() if key != "quant_method"}
            if odd := sorted(map(str, values.keys() - {"backend", *Recipe.__dataclass_fields__})):
                raise ConfigError(f"MixDQConfig: unknown keys {odd[:8]}")
            config = cls(**values)
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        if isinstance(self.source, SavedModel):
            return to_json(self.source, self.backend)
        recipe = asdict(self.source) | {"modules_to_not_convert": list(self.source.modules_to_not_convert)}
        return {"quant_method": METHOD, "backend": self.backend, **recipe}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return all of it; diffusers prints this."""
        return self.to_dict()

    def __deepcopy__(self, memo: Mapping[int, Any]) -> Self:
        # Frozen values all through, but for the backend's name.
        copied = type(self)(backend=self.backend)
        copied.source = self.source
        return copied
