import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from mixdq.errors import NonFiniteError, UnsupportedModelError
from mixdq.pipeline.generate import GenerationSpec
from mixdq.sensitivity.products import Products, _explaining
from mixdq.testing import fingerprint, tiny_sdxl_pipeline

NET = torch.nn.Identity()


def test_vectors_do_not_depend_on_the_slice_or_the_batch_they_come_in(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    trials = eight_bit_trials(scorer, "ssim")[:4]
    products = Products(trials, scorer, "ssim")
    at_once = products(0, range(4))
    assert np.array_equal(np.concatenate([products(0, [0]), products(0, [1, 2, 3])]), at_once)
    assert at_once.shape == (4, 3, 4)
    small = replace(scorer, trace=build_scorer(tiny_sdxl_pipeline, GenerationSpec(), batch_size=2).trace)
    in_batches = Products(trials, small, "ssim")
    found = np.concatenate([in_batches(part, range(4)) for part in range(in_batches.parts)], axis=1)
    assert np.allclose(found, at_once, rtol=1e-3, atol=1e-3 * abs(at_once).mean())


def test_checkpointing_gives_the_same_numbers_and_is_switched_off_again(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    trials = eight_bit_trials(scorer, "ssim")
    plain = Products(trials, scorer, "ssim")(0, range(2))
    before = fingerprint(scorer.denoiser)
    saving = Products(trials, scorer, "ssim", checkpointing=True)(0, range(2))
    assert np.allclose(plain, saving, rtol=1e-4, atol=1e-4 * abs(plain).mean())
    assert fingerprint(scorer.denoiser) == before
    assert not scorer.denoiser.is_gradient_checkpointing


def test_a_denoiser_without_gradients_is_refused_in_words(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    trials = eight_bit_trials(scorer, "sqnr")
    scorer.denoiser.conv_out.register_forward_hook(lambda _, __, output: output.detach())
    with pytest.raises(UnsupportedModelError, match=r"UNet2DConditionModel: no gradient.*method = 'exact'"):
        Products(trials, scorer, "sqnr")(0, [0])


@pytest.mark.parametrize(
    ("error", "said", "advice"),
    [
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)\nmore"), "no memory for a backward pass", True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "no memory for a backward pass", True),
        (torch.OutOfMemoryError(), "no memory for a backward pass", True),
        (NotImplementedError(), "no gradient reaches its layers (NotImplementedError())", False),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_why_there_is_no_backward_pass_is_said_with_what_is_left_to_set(
    error: RuntimeError, said: str, advice: bool, checkpointing: bool
) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(said)) as caught, _explaining(NET, checkpointing):
        raise error
    text = str(caught.value)
    assert "\n" not in text
    assert "sensitivity.method = 'exact'" in text
    assert ("generation.batch_size" in text) == advice
    assert ("sensitivity.checkpointing = true" in text) == (advice and not checkpointing)


def test_memory_that_does_not_suffice_is_refused_with_what_to_set(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())

    def exhausted(*_: object) -> None:
        torch.empty(2**60)

    scorer.denoiser.conv_out.register_forward_hook(exhausted)
    with pytest.raises(UnsupportedModelError, match=r"no memory for a backward pass.*checkpointing = true"):
        Products(eight_bit_trials(scorer, "sqnr"), scorer, "sqnr")(0, [0])


def test_a_gradient_that_is_not_finite_names_its_layer_and_leaves_the_model(build_scorer, eight_bit_trials) -> None:
    scorer = build_scorer(tiny_sdxl_pipeline, GenerationSpec())
    name = "mid_block.attentions.0.proj_out"
    module = scorer.denoiser.get_submodule(name)

    def spoil(_: object, __: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda grad: grad * float("nan"))

    products = Products(eight_bit_trials(scorer, "sqnr"), scorer, "sqnr")
    whole = products(0, [0])
    handle = module.register_forward_hook(spoil)
    with pytest.raises(NonFiniteError, match="the backward pass gives NaN") as caught:
        products(0, [0])
    handle.remove()
    assert caught.value.where == name
    assert all(parameter.requires_grad for parameter in scorer.denoiser.parameters())
    # What the pass that failed had found is forgotten.
    assert np.array_equal(products(0, [0]), whole)
