import pytest
import torch
from transformers.utils import logging as transformers_logging

from mixdq.errors import ArtifactFormatError, ConfigError
from mixdq.pipeline.generate import GenerationSpec, generate
from mixdq.testing import fingerprint, tiny_sdxl_pipeline
from mixdq.workflow.drawing import draw, first_outputs, halved, metrics_for, read_outputs, silent
from mixdq.workflow.session import Session

PROMPTS = ("a dog", "a cat", "a tree")


def test_trace_draws_what_generation_draws(tmp_path, configure) -> None:
    pipe = tiny_sdxl_pipeline()
    trace = draw(Session(tmp_path, configure(generation={"batch_size": 2}), pipe=pipe), pipe, PROMPTS)
    assert torch.equal(trace.pictures, generate(pipe, PROMPTS, GenerationSpec(), batch_size=2))


@pytest.mark.parametrize("guidance", [0.0, 5.0])
def test_first_outputs_are_one_a_prompt_whatever_guidance_and_steps(tmp_path, configure, guidance) -> None:
    pipe = tiny_sdxl_pipeline()
    settings = {"guidance_scale": guidance, "batch_size": 2}
    outputs = [
        first_outputs(draw(Session(tmp_path, configure(generation={**settings, "steps": n})), pipe, PROMPTS))
        for n in (1, 2)
    ]
    assert outputs[0].shape == (3, 4, 8, 8)
    assert outputs[1].shape == (3, 4, 8, 8)
    assert outputs[0].unique(dim=0).shape[0] == 3


def test_outputs_that_cannot_be_read_are_refused_by_name(tmp_path) -> None:
    path = tmp_path / "outputs.safetensors"
    for data in (None, b"", b"\x00" * 64):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ArtifactFormatError, match=r"outputs\.safetensors.*delete .* and run again"):
            read_outputs(path)


def test_pictures_are_always_judged_by_ssim_and_psnr(tmp_path, configure) -> None:
    session = Session(tmp_path, configure(evaluation={"metrics": ["sqnr", "clip_score"]}))
    # Without an image tower there is no CLIP score; SQNR is not of pictures.
    assert [metric.name for metric in metrics_for(session, tiny_sdxl_pipeline())] == ["ssim", "psnr"]


def test_unknown_metric_is_refused_with_the_known_ones(tmp_path, configure) -> None:
    session = Session(tmp_path, configure(evaluation={"metrics": ["sism"]}))
    with pytest.raises(ConfigError, match=r"'sism'.*ssim"):
        metrics_for(session, tiny_sdxl_pipeline())


def test_parts_that_fit_float16_are_saved_so_and_come_back_exactly(tmp_path) -> None:
    pipe = tiny_sdxl_pipeline()
    pipe.vae.to(torch.float16).to(torch.float32)
    before = {name: fingerprint(getattr(pipe, name)) for name in ("vae", "text_encoder", "unet")}
    with halved(pipe):
        types = {name: getattr(pipe, name).dtype for name in before}
    # Random text encoders do not fit, and the denoiser is never touched.
    assert types == {"vae": torch.float16, "text_encoder": torch.float32, "unet": torch.float32}
    assert {name: fingerprint(getattr(pipe, name)) for name in before} == before


def test_halved_parts_come_back_when_saving_fails() -> None:
    pipe = tiny_sdxl_pipeline()
    pipe.vae.to(torch.float16).to(torch.float32)
    with pytest.raises(OSError, match="full"), halved(pipe):
        raise OSError("full")
    assert pipe.vae.dtype == torch.float32


@pytest.mark.parametrize("shown", [True, False])
def test_bars_of_the_libraries_are_off_for_a_while_only(shown) -> None:
    was = transformers_logging.is_progress_bar_enabled()
    switch = {True: transformers_logging.enable_progress_bar, False: transformers_logging.disable_progress_bar}
    try:
        switch[shown]()
        with silent():
            assert not transformers_logging.is_progress_bar_enabled()
        assert transformers_logging.is_progress_bar_enabled() == shown
    finally:
        switch[was]()
