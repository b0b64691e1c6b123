import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from mixdq.errors import ClusterError
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.pipeline.trace import record_calls
from mixdq.sensitivity.desk import Desk, Slice
from mixdq.sensitivity.engines.worker import Recipe, Worker, code
from mixdq.testing import tiny_sdxl_pipeline


def test_it_scores_as_the_process_does_that_it_works_for(case) -> None:
    worker = Worker()
    worker.check(code())
    # As it travels: nothing of the model goes along.
    sent = pickle.dumps(Recipe.of(case.desk, case.source))
    worker.open(pickle.loads(sent))
    for trial in case.trials[::17]:
        assert worker.do(Desk.score, trial) == case.scorer(trial)
    one = Slice(metric="sqnr", part=0, numbers=(1, 5))
    assert np.array_equal(worker.do(Desk.products, one), case.desk.products(one))
    weights = sum(weight.numel() * weight.element_size() for weight in case.scorer.denoiser.parameters())
    assert len(sent) < weights


def test_it_takes_the_number_of_threads_along(case) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        trace = record_calls(case.pipe, find_family(case.pipe), ["a cat"], GenerationSpec())
        recipe = Recipe.of(Desk(replace(case.scorer, trace=trace)), case.source)
        torch.set_num_threads(1)
        # With one thread the sums may come out otherwise, and it would be refused.
        Worker().open(recipe)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["mixdq", "torch", "the digest of mixdq's code"])
def test_other_code_is_refused_by_name(name) -> None:
    with pytest.raises(ClusterError, match=re.escape(f"{name} is {code()[name]}, not 0.0.1")) as refusal:
        Worker().check({**code(), name: "0.0.1"})
    assert "Install the same" in str(refusal.value)


def test_a_model_that_is_not_there_is_refused(case, tmp_path) -> None:
    nowhere = replace(case.source, path=str(tmp_path / "nowhere"))
    with pytest.raises(ClusterError, match=r"no such folder .* same path or hub id"):
        Worker().open(Recipe.of(case.desk, nowhere))


def spoilt(case, folder: Path, component: str) -> Recipe:
    """The recipe that leads to a copy of the model with another component."""
    shutil.copytree(case.source.path, folder)
    other: DiffusionPipeline = tiny_sdxl_pipeline(seed=1)
    getattr(other, component).save_pretrained(folder / component)
    return Recipe.of(case.desk, replace(case.source, path=str(folder)))


def test_other_weights_are_refused(case, tmp_path) -> None:
    with pytest.raises(ClusterError, match="holds other weights"):
        Worker().open(spoilt(case, tmp_path / "model", "unet"))


def test_an_autoencoder_that_draws_other_pictures_is_refused(case, tmp_path) -> None:
    with pytest.raises(ClusterError, match="gives other numbers there than here"):
        Worker().open(spoilt(case, tmp_path / "model", "vae"))


def test_a_denoiser_that_gives_other_numbers_is_refused(case) -> None:
    # As on another kind of processor: the last bit of one output differs.
    first, *others = case.scorer.trace.batches
    (call,) = first.calls
    output = call.output.clone()
    output.view(torch.int32).view(-1)[0] ^= 1
    trace = replace(case.scorer.trace, batches=(replace(first, calls=(replace(call, output=output),)), *others))
    with pytest.raises(ClusterError, match="gives other numbers there than here"):
        Worker().open(Recipe.of(Desk(replace(case.scorer, trace=trace)), case.source))
