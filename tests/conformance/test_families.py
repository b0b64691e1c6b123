"""Quantized UNets inside all the pipelines that people build around one, and under all that they do to the text.

What may go wrong there is the first text token, whose row is stored: in every pipeline the row must be what the float
layer gives for the state that really came, exactly or with a warning.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    ControlNetModel,
    DiffusionPipeline,
    T2IAdapter,
)
from torch import Tensor, nn

import mixdq
from mixdq.errors import UnsupportedModelError
from mixdq.metrics.psnr import psnr
from mixdq.pipeline.family import find_family
from mixdq.quant.bos import MISFIT_LIMIT
from mixdq.runtime.layer import QuantizedLayer
from mixdq.testing import BLOCKS, TEXT_WIDTH, tiny_sd_pipeline, tiny_sdxl_pipeline
from mixdq.types.plan import BitPlan, LayerBits

PROMPTS = ("a red dog", "two cats")
UNETS = {"sdxl": tiny_sdxl_pipeline, "sd": tiny_sd_pipeline}
ROUNDING = 1e-6
"""Of sums of some tens of products in float32, relative to the sum of their magnitudes."""
NEAR = 18.0
"""PSNR in dB: off by an eighth of the range, root mean square. Random weights damp nothing, and guidance adds to it."""
EIGHT = LayerBits(weight=8, activation=8)


@dataclass(frozen=True)
class Pair:
    """A pipeline in floating point, and one of the same weights with its UNet quantized."""

    family: str
    plain: DiffusionPipeline
    quantized: DiffusionPipeline

    @contextmanager
    def rows_checked(self, tolerance: float) -> Iterator[list[str]]:
        """Hold every first token's row to the float layer's, relative to what it could be at most; note who ran."""
        ran: list[str] = []

        def check(name: str) -> Callable[..., None]:
            float_layer = self.plain.unet.get_submodule(name)

            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                ran.append(name)
                x0 = args[0][:, 0]
                most = x0.abs().sum(-1, keepdim=True) * float_layer.weight.abs().max()
                assert bool(((output[:, 0] - float_layer(x0)).abs() <= tolerance * most).all())

            return hook

        handles = [
            module.register_forward_hook(check(name))
            for name, module in self.quantized.unet.named_modules()
            if isinstance(module, QuantizedLayer) and module.layout.bos
        ]
        try:
            yield ran
        finally:
            for handle in handles:
                handle.remove()

    def draw(
        self, make: Callable[[DiffusionPipeline], DiffusionPipeline], tolerance: float = ROUNDING, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the picture of both, from the pipelines that `make` builds around them; rows are checked."""
        with torch.no_grad():
            wanted = self.run(make(self.plain), **inputs)
            with self.rows_checked(tolerance) as ran:
                found = self.run(make(self.quantized), **inputs)
        assert ran
        return wanted, found

    def run(self, pipe: DiffusionPipeline, **inputs: Any) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        given = {"guidance_scale": 1.0, "num_inference_steps": 2} | inputs
        if "prompt_embeds" not in given:
            given.setdefault("prompt", PROMPTS[0])
        # Not every pipeline knows tensors.
        pictures = pipe(**given, output_type="np", generator=torch.Generator().manual_seed(3)).images
        return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def make_pair(family: str, change: Callable[[DiffusionPipeline], None] = lambda pipe: None, **options: Any) -> Pair:
    """Return a pair whose float model was changed by `change` first."""
    plain, quantized = UNETS[family](**options), UNETS[family](**options)
    change(plain)
    change(quantized)
    table = mixdq.inspect(quantized)
    record = mixdq.calibrate(quantized, PROMPTS, table=table)
    plan = BitPlan(name="8", layers={layer.name: EIGHT for layer in table})
    return Pair(family, plain, mixdq.apply(quantized, plan, record, table))


@pytest.fixture(scope="module", params=UNETS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return make_pair(request.param)


def picture(shade: float = 0.5) -> Tensor:
    return torch.full((1, 3, 16, 16), shade)


def with_controlnet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        # Of the float UNet's shape; its last layers are zeros until trained. Latents are half as wide as pictures here.
        net = ControlNetModel.from_unet(UNETS[family_of(pipe)]().unet, conditioning_embedding_out_channels=(16, 32))
        nn.init.normal_(net.controlnet_mid_block.weight, std=0.05)
    return around(pipe, "ControlNet", controlnet=net.eval())


def with_adapter(pipe: DiffusionPipeline) -> DiffusionPipeline:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        net = T2IAdapter(channels=list(BLOCKS), num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl")
    return around(pipe, "Adapter", adapter=net.eval())


def family_of(pipe: DiffusionPipeline) -> str:
    return find_family(pipe).name


def around(pipe: DiffusionPipeline, kind: str, **others: nn.Module) -> DiffusionPipeline:
    """Return diffusers' pipeline of a kind, built from the components of `pipe`."""
    sibling = getattr(diffusers, f"{type(pipe).__name__.removesuffix('Pipeline')}{kind}Pipeline")
    known = signature(sibling).parameters
    given = {**pipe.components, "requires_safety_checker": False, **others}
    return sibling(**{name: part for name, part in given.items() if name in known})


SIBLINGS: dict[str, tuple[Callable[[DiffusionPipeline], DiffusionPipeline], dict[str, Any]]] = {
    "text-to-image": (AutoPipelineForText2Image.from_pipe, {}),
    "image-to-image": (AutoPipelineForImage2Image.from_pipe, {"image": picture(), "strength": 0.5}),
    "inpaint": (
        AutoPipelineForInpainting.from_pipe,
        {"image": picture(), "mask_image": picture(1.0)[:, :1], "strength": 1.0, "height": 16, "width": 16},
    ),
    "controlnet": (with_controlnet, {"image": picture()}),
    "t2i-adapter": (with_adapter, {"image": picture(), "height": 16, "width": 16}),
}


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("sibling", SIBLINGS)
def test_a_quantized_unet_works_in_every_pipeline(pair: Pair, sibling: str, guidance_scale: float) -> None:
    make, inputs = SIBLINGS[sibling]
    wanted, found = pair.draw(make, **inputs, guidance_scale=guidance_scale)
    assert psnr(wanted, found) > NEAR


@pytest.mark.parametrize("text_encoders", [1, 2], ids=["refiner", "base"])
@pytest.mark.parametrize("zeroed", [True, False])
def test_an_empty_negative_prompt_may_be_zeroed(zeroed: bool, text_encoders: int) -> None:
    pair = make_pair("sdxl", zero_empty_prompt=zeroed, text_encoders=text_encoders)
    wanted, found = pair.draw(AutoPipelineForText2Image.from_pipe, guidance_scale=2.0)
    assert psnr(wanted, found) > NEAR


WEIGHTINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "words": lambda embeds, empty: torch.cat([embeds[:, :1], 1.3 * embeds[:, 1:]], dim=1),
    "away from the empty prompt": lambda embeds, empty: empty + 1.3 * (embeds - empty),
    "with the mean restored": lambda embeds, empty: 0.8 * embeds,
}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_prompts_may_be_weighted(pair: Pair, weighting: str) -> None:
    family = find_family(pair.plain)
    with torch.no_grad():
        given, empty = (family.encode(pair.plain, [prompt], 1.0) for prompt in (PROMPTS[0], ""))
    given["prompt_embeds"] = WEIGHTINGS[weighting](given["prompt_embeds"], empty["prompt_embeds"])
    wanted, found = pair.draw(AutoPipelineForText2Image.from_pipe, **given)
    assert psnr(wanted, found) > NEAR


def test_textual_inversion_teaches_a_new_word(pair: Pair) -> None:
    word = "<mine>"
    taught = make_pair(pair.family, lambda pipe: teach(pipe, word))
    plain, found = taught.draw(AutoPipelineForText2Image.from_pipe, prompt=f"a {word}")
    assert psnr(plain, found) > NEAR
    assert not torch.equal(found, taught.run(taught.quantized, prompt="a "))
    # Taught after quantization, it is the same word to the same model.
    teach(pair.quantized, word)
    assert torch.equal(found, pair.run(pair.quantized, prompt=f"a {word}"))


def teach(pipe: DiffusionPipeline, word: str) -> None:
    vector = torch.linspace(-1, 1, TEXT_WIDTH)
    for name in encoders(pipe):
        tokenizer = getattr(pipe, name.replace("text_encoder", "tokenizer"))
        pipe.load_textual_inversion({word: vector}, token=word, text_encoder=getattr(pipe, name), tokenizer=tokenizer)


@pytest.mark.parametrize("strength", [0.001, 0.3])
@pytest.mark.parametrize("family", UNETS)
def test_an_adapted_text_encoder_draws_as_in_floating_point_calibrated_or_not(family: str, strength: float) -> None:
    def change(pipe: DiffusionPipeline) -> None:
        for name in encoders(pipe):
            adapt(getattr(pipe, name), strength)

    before = make_pair(family, change)
    assert psnr(*before.draw(AutoPipelineForText2Image.from_pipe)) > NEAR
    after = make_pair(family)
    change(after.plain)
    change(after.quantized)
    with nullcontext() if strength < 0.1 else pytest.warns(UserWarning, match="adapted text encoder"):
        wanted, found = after.draw(AutoPipelineForText2Image.from_pipe, tolerance=MISFIT_LIMIT)
    assert psnr(wanted, found) > NEAR


@pytest.mark.parametrize("family", UNETS)
def test_clip_skip_is_told_and_draws_as_in_floating_point(family: str) -> None:
    pair = make_pair(family)
    # diffusers' own way for Stable Diffusion fails with transformers 5, which has moved the norm.
    given = {"clip_skip": 1} if family == "sdxl" else {"prompt_embeds": last_but_one(pair.plain)}
    with pytest.warns(UserWarning, match="clip skip"):
        wanted, found = pair.draw(AutoPipelineForText2Image.from_pipe, tolerance=0.5 / 127, **given)
    assert psnr(wanted, found) > NEAR


@torch.no_grad()
def last_but_one(pipe: DiffusionPipeline) -> Tensor:
    """What Stable Diffusion reads with `clip_skip=1`: the states before the encoder's last layer, normalized."""
    ids = pipe.tokenizer(PROMPTS[0], padding="max_length", return_tensors="pt").input_ids
    encoder = pipe.text_encoder
    (norm,) = (module for name, module in encoder.named_modules() if name.endswith("final_layer_norm"))
    states: Tensor = norm(encoder(ids, output_hidden_states=True).hidden_states[-2])
    return states


@pytest.mark.parametrize("family", UNETS)
def test_a_fused_lora_is_quantized_with_its_model(family: str) -> None:
    plain, found = make_pair(family, lambda pipe: adapt(pipe.unet, 0.05)).draw(AutoPipelineForText2Image.from_pipe)
    assert psnr(plain, found) > NEAR


@pytest.mark.parametrize("family", UNETS)
def test_lcm_lora_is_fused_before_quantization_and_refused_unfused(family: str) -> None:
    pytest.importorskip("peft", reason="diffusers loads LoRA through peft, which is not installed")
    pipe = UNETS[family]()
    before = mixdq.generate(pipe, PROMPTS)
    pipe.load_lora_weights(lora_of(pipe.unet))
    with pytest.raises(UnsupportedModelError, match="fuse_lora"):
        mixdq.inspect(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = mixdq.generate(pipe, PROMPTS)
    assert psnr(before, fused) < 40
    table = mixdq.inspect(pipe)
    record = mixdq.calibrate(pipe, PROMPTS, table=table)
    mixdq.apply(pipe, BitPlan(name="8", layers={layer.name: EIGHT for layer in table}), record, table)
    assert psnr(fused, mixdq.generate(pipe, PROMPTS)) > psnr(before, fused)


def lora_of(unet: nn.Module) -> dict[str, Tensor]:
    """Return a LoRA of rank 2 on every attention projection, by the names of diffusers' files."""
    generator, weights = torch.Generator().manual_seed(7), {}
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and ".attn" in name:
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator)
            weights[f"unet.{name}.lora_B.weight"] = 0.1 * torch.randn(module.out_features, 2, generator=generator)
    return weights


def encoders(pipe: DiffusionPipeline) -> list[str]:
    return [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name, None) is not None]


def adapt(model: nn.Module, strength: float) -> None:
    """Change a model as fused LoRAs of rank 2 do."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                down = torch.randn(2, module.in_features, generator=generator)
                module.weight += strength * torch.randn(module.out_features, 2, generator=generator) @ down
