import pytest
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from torch import nn

from mixdq.errors import UnsupportedModelError
from mixdq.pipeline.family import FAMILIES, find_family
from mixdq.testing import tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline, tiny_sdxl_pipeline


def test_each_family_knows_its_own_pipeline_alone() -> None:
    for build, name in (
        (tiny_sdxl_pipeline, "sdxl"),
        (tiny_sd_pipeline, "sd"),
        (tiny_flux_pipeline, "flux"),
        (tiny_sd3_pipeline, "sd3"),
    ):
        pipe = build()
        assert [family.name for family in FAMILIES if family.matches(pipe)] == [name]
        assert find_family(pipe).name == name


class SanaTransformer2DModel(nn.Module):
    """Stands for a transformer denoiser."""


class SanaPipeline(DiffusionPipeline):
    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    @property
    def components(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer}


def test_an_unknown_denoiser_is_named_with_the_families_there_are() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        find_family(SanaPipeline(SanaTransformer2DModel()))
    for word in ("SanaPipeline", "SanaTransformer2DModel.from_pretrained", *(family.name for family in FAMILIES)):
        assert word in str(caught.value)


def test_a_pipeline_of_a_known_class_with_a_foreign_denoiser_is_refused() -> None:
    pipe: StableDiffusionXLPipeline = tiny_sdxl_pipeline()
    pipe.unet = nn.Linear(1, 1)
    with pytest.raises(UnsupportedModelError, match="with a Linear"):
        find_family(pipe)
