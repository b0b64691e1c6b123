import copy
import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import PipelineQuantizationConfig

import mixdq
from mixdq.errors import ArtifactFormatError, ConfigError
from mixdq.integrations.diffusers import MixDQConfig

RECIPE: dict[str, Any] = {
    "weight_bits": 4,
    "activation_bits": 8,
    "activations": "dynamic",
    "symmetric": False,
    "modules_to_not_convert": ["conv_in"],
    "backend": "reference",
}


@pytest.fixture(params=["recipe", "saved"])
def config(request: pytest.FixtureRequest, quantized: Any) -> MixDQConfig:
    return MixDQConfig(**RECIPE) if request.param == "recipe" else quantized.pipe.unet.hf_quantizer.quantization_config


def test_it_goes_through_json_and_back(config: MixDQConfig) -> None:
    values = json.loads(json.dumps(config.to_dict(), sort_keys=True))
    again = MixDQConfig.from_dict(values)
    assert (again.source, again.backend) == (config.source, config.backend)
    assert json.loads(config.to_json_string()) == config.to_diff_dict() == values


def test_it_is_printed_as_json(config: MixDQConfig) -> None:
    assert json.loads(repr(config).removeprefix("MixDQConfig "))["quant_method"] == "mixdq"


def test_a_copy_says_the_same_and_has_a_backend_of_its_own(config: MixDQConfig) -> None:
    again = copy.deepcopy(config)
    again.backend = "auto"
    assert again.source == config.source
    assert config.backend == "reference"


def test_what_is_still_to_be_done_has_no_plan() -> None:
    with pytest.raises(ConfigError, match="once it is loaded"):
        _ = MixDQConfig().saved


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"weight_bits": 1}, "2 to 8"),
        ({"weight_bits": 16}, "2 to 8"),
        ({"weight_bits": 4.0}, "2 to 8"),
        ({"weight_bits": True}, "2 to 8"),
        ({"activation_bits": 9}, "16 for floating point"),
        ({"activations": "sometimes"}, "'static' or 'dynamic'"),
        ({"symmetric": 1}, "True or False"),
        ({"number": "double"}, "'int' or 'float'"),
        ({"number": "float"}, "8 bits, so expected 8 and 8"),
        ({"number": "float", "weight_bits": 4, "activation_bits": 8, "activations": "dynamic"}, "8 bits"),
        ({"modules_to_not_convert": [3]}, "names of modules"),
        ({"modules_to_not_convert": [""]}, "names of modules"),
        ({"backend": "abacus"}, "reference"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MixDQConfig(**wrong)


def test_static_activations_name_the_command_that_calibrates() -> None:
    with pytest.raises(ConfigError, match="mixdq quantize MODEL -o OUT --weight-bits 4 --activation-bits 8"):
        MixDQConfig(weight_bits=4, activation_bits=8)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="group_size"):
        MixDQConfig.from_dict({"quant_method": "mixdq", "group_size": 64})


def test_a_model_of_a_newer_format_is_refused(quantized: Any) -> None:
    values = quantized.pipe.unet.hf_quantizer.quantization_config.to_dict() | {"format_version": 99}
    with pytest.raises(ArtifactFormatError, match="update mixdq"):
        MixDQConfig.from_dict(values)


def test_one_name_and_a_list_of_it_mean_the_same() -> None:
    assert MixDQConfig(modules_to_not_convert="ff").source == MixDQConfig(modules_to_not_convert=["ff"]).source


def test_a_pipeline_takes_it_for_one_component(quantized: Any, tmp_path: Path) -> None:
    mapping = PipelineQuantizationConfig(quant_mapping={"unet": mixdq.MixDQConfig(weight_bits=4, backend="reference")})
    floating = copy.deepcopy(quantized.pipe.unet).dequantize()
    components = {**quantized.pipe.components, "unet": floating}
    type(quantized.pipe)(**components).save_pretrained(tmp_path)
    pipe = type(quantized.pipe).from_pretrained(tmp_path, quantization_config=mapping)
    assert pipe.unet.config["quantization_config"].saved.plan.name == "every layer W4A16"
    assert type(pipe.vae.decoder.layers[0]).__name__ == "Conv2d"
