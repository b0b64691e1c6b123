from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from mixdq.integrations import diffusers as ours


def test_diffusers_finds_the_quantizer_and_its_config_however_often_they_are_entered() -> None:
    ours.register()
    ours.register()
    assert AUTO_QUANTIZER_MAPPING["mixdq"] is ours.MixDQQuantizer
    assert AUTO_QUANTIZATION_CONFIG_MAPPING["mixdq"] is ours.MixDQConfig
