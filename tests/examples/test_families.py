"""What the examples do with the embedded SDXL, done with Stable Diffusion, Flux and Stable Diffusion 3.5 in tiny.

The weights are quantized while the denoiser loads; its oracle is the float model, or its own dequantized copy.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from torch import Tensor, nn

from mixdq.errors import ConfigError
from mixdq.integrations.diffusers import MixDQConfig
from mixdq.metrics.psnr import psnr
from mixdq.runtime.layer import QuantizedLayer
from mixdq.testing import TEXT_WIDTH, tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline

MAKERS = {"sd": tiny_sd_pipeline, "flux": tiny_flux_pipeline, "sd3": tiny_sd3_pipeline}
NAMES = {"sd": "StableDiffusion", "flux": "Flux", "sd3": "StableDiffusion3"}
TRANSFORMERS = ("flux", "sd3")
SIZE = 16


@dataclass(frozen=True)
class Subject:
    """A pipeline in floating point, and the folder of its denoiser."""

    family: str
    plain: Any
    folder: Path

    @property
    def part(self) -> str:
        return "transformer" if self.family in TRANSFORMERS else "unet"

    @property
    def floating(self) -> Any:
        return self.plain.components[self.part]

    def open(self, folder: Path | None = None, **options: Any) -> Any:
        """Return the quantized denoiser: of the float folder, quantized while it loads, or of another as it lies."""
        if folder is None:
            options = {"quantization_config": MixDQConfig(weight_bits=8, backend="reference"), **options}
        return type(self.floating).from_pretrained(folder or self.folder, **options)

    def around(self, denoiser: Any, kind: str = "", **others: Any) -> Any:
        """Return diffusers' pipeline of a kind ("Img2Img", ...) around a denoiser, with the parts of the plain one."""
        made = getattr(diffusers, f"{NAMES[self.family]}{kind}Pipeline")
        checked = {} if self.family in TRANSFORMERS else {"requires_safety_checker": False}
        return made(**{**self.plain.components, **checked, self.part: denoiser, **others})

    def draw(self, denoiser: Any, kind: str = "", parts: dict[str, Any] | None = None, **inputs: Any) -> Tensor:
        pipe = self.around(denoiser, kind, **parts or {})
        pipe.set_progress_bar_config(disable=True)
        given = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": SIZE, "width": SIZE, **inputs}
        if "prompt_embeds" not in given:
            given.setdefault("prompt", "a red dog")
        # Not every pipeline draws all of its numbers from the generator.
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            pictures: Tensor = pipe(**given, generator=torch.Generator().manual_seed(0), output_type="pt").images
        return pictures


def made(family: str, folder: Path) -> Subject:
    pipe = MAKERS[family]()
    if family == "sd3":
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            pipe.register_modules(**sixteen_channels(pipe))
    subject = Subject(family, pipe, folder)
    subject.floating.save_pretrained(folder)
    return subject


def sixteen_channels(pipe: Any) -> dict[str, nn.Module]:
    """Latents as SD3's own: diffusers inpaints no others, and its ControlNet reads a distribution of them."""
    config = {**pipe.transformer.config, "in_channels": 16, "out_channels": 16}
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    return {"transformer": type(pipe.transformer).from_config(config).eval(), "vae": vae.eval()}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    return {family: made(family, tmp_path_factory.mktemp(family)) for family in MAKERS}


@pytest.fixture(params=TRANSFORMERS)
def subject(request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Subject:
    return subjects[request.param]


@pytest.fixture(params=MAKERS)
def each(request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Subject:
    """What is not asked of Stable Diffusion elsewhere is asked here."""
    return subjects[request.param]


@pytest.mark.parametrize(
    ("saving", "opening"),
    [({"max_shard_size": "50KB"}, {}), ({"variant": "w8"}, {"variant": "w8"}), ({}, {"device_map": "auto"})],
    ids=["shards", "variant", "device map"],
)
def test_saved_and_opened_it_draws_the_same(subject: Subject, tmp_path: Path, saving: Any, opening: Any) -> None:
    if opening.get("device_map") and torch.cuda.is_available():
        opening = {"device_map": "cpu"}
    model = subject.open()
    model.save_pretrained(tmp_path, **saving)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == ("max_shard_size" in saving)
    assert torch.equal(subject.draw(subject.open(tmp_path, **opening)), subject.draw(model))


def test_casts_are_refused_and_dequantizing_gives_the_same_weights(subject: Subject) -> None:
    model = subject.open()
    with pytest.raises(ValueError, match="quantized model"):
        model.half()
    wanted = subject.draw(model)
    model.dequantize()
    assert not any(isinstance(module, QuantizedLayer) for module in model.modules())
    assert psnr(subject.draw(model), wanted) > 60


def test_named_modules_stay_in_floating_point(subject: Subject) -> None:
    recipe = MixDQConfig(weight_bits=8, modules_to_not_convert=["attn"], backend="reference")
    model = subject.open(quantization_config=recipe)
    quantized = {name for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
    assert quantized
    assert not [name for name in quantized if ".attn." in name]


@pytest.mark.parametrize("way", ["model", "sequential", "leaf_level", "block_level"])
def test_offloaded_it_draws_the_same(subject: Subject, way: str) -> None:
    model, device = subject.open(), torch.device("cpu")
    wanted = subject.draw(model)
    if way == "model":
        accelerate.cpu_offload_with_hook(model, device)
    elif way == "sequential":
        accelerate.cpu_offload(model, device, offload_buffers=True)
    else:
        blocks = {"num_blocks_per_group": 1} if way == "block_level" else {}
        model.enable_group_offload(onload_device=device, offload_device=device, offload_type=way, **blocks)
    for _ in range(2):
        assert torch.equal(subject.draw(model), wanted)


def test_compiled_block_by_block_it_draws_nearly_the_same(subjects: dict[str, Subject]) -> None:
    # Diffusers names no repeated blocks of SD3.
    subject = subjects["flux"]
    model = subject.open()
    wanted = subject.draw(model)
    torch._dynamo.reset()
    model.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    # Compiled code may sum in another order.
    assert psnr(wanted, subject.draw(model)) > 60
    torch._dynamo.reset()


def test_inputs_scaled_at_run_time_hardly_change_the_picture(each: Subject) -> None:
    recipe = MixDQConfig(weight_bits=8, activation_bits=8, activations="dynamic", backend="reference")
    assert psnr(each.draw(each.floating), each.draw(each.open(quantization_config=recipe))) > 20


@pytest.mark.parametrize("steps", [1, 4])
def test_another_scheduler_draws_what_it_draws_with_the_float_model(each: Subject, steps: int) -> None:
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if each.family in TRANSFORMERS else {}
    pictures = [
        each.draw(denoiser, parts={"scheduler": diffusers.UniPCMultistepScheduler(**flow)}, num_inference_steps=steps)
        for denoiser in (each.floating, each.open())
    ]
    assert psnr(*pictures) > 20
    assert not torch.equal(pictures[0], each.draw(each.floating, num_inference_steps=steps))


def lora(model: nn.Module) -> dict[str, Tensor]:
    draw, tensors = torch.Generator().manual_seed(1), {}
    for name, module in model.named_modules():
        if name.endswith((".to_q", ".to_k", ".to_v")):
            tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=draw)
            tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=draw)
    return tensors


def test_lora_is_loaded_scaled_and_unloaded_and_not_fused(subject: Subject) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    model, floating = subject.open(), subject.open().dequantize()
    before = subject.draw(model)
    for one in (model, floating):
        subject.around(one).load_lora_weights(lora(subject.floating), adapter_name="style")
        one.set_adapters("style", 0.5)
    styled = subject.draw(model)
    assert psnr(before, styled) < 40
    assert psnr(subject.draw(floating), styled) > 60
    assert torch.equal(subject.draw(model), styled)
    with pytest.raises(ConfigError, match="fuse it into the float model"):
        model.fuse_lora()
    subject.around(model).unload_lora_weights()
    assert torch.equal(subject.draw(model), before)


def test_a_lora_is_trained_on_it(subject: Subject) -> None:
    peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    model = subject.open()
    model.requires_grad_(False)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"]))
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = subject.draw(model)

    # What the pipeline hands to the denoiser, with gradients.
    calls: list[dict[str, Any]] = []
    handle = model.register_forward_pre_hook(lambda module, args, given: calls.append(given), with_kwargs=True)
    subject.draw(model)
    handle.remove()
    optimizer = torch.optim.AdamW(learnt, lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(**{**calls[0], "return_dict": True}).sample.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(subject.draw(model), before)


def controlnet(subject: Subject) -> nn.Module:
    """A control network that begins with the float denoiser's weights; its zero layers are given some."""
    small = {
        "flux": {"num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2},
        "sd3": {"num_extra_conditioning_channels": 0},
    }[subject.family]
    kind = {"flux": diffusers.FluxControlNetModel, "sd3": diffusers.SD3ControlNetModel}[subject.family]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        net = kind.from_transformer(copy.deepcopy(subject.floating), num_layers=1, **small)
        for block in net.controlnet_blocks:
            nn.init.normal_(block.weight, std=0.05)
    return net.eval()


PICTURE = torch.linspace(0, 1, SIZE).expand(1, 3, SIZE, SIZE)
MASK = torch.ones(1, 1, SIZE, SIZE)
SIBLINGS: dict[str, tuple[str, Callable[[Subject], dict[str, Any]], dict[str, Any]]] = {
    "image-to-image": ("Img2Img", lambda subject: {}, {"image": PICTURE, "strength": 0.5}),
    "inpaint": ("Inpaint", lambda subject: {}, {"image": PICTURE, "mask_image": MASK, "strength": 1.0}),
    "controlnet": ("ControlNet", lambda subject: {"controlnet": controlnet(subject)}, {"control_image": PICTURE}),
}


@pytest.mark.parametrize("sibling", SIBLINGS)
def test_it_works_in_other_pipelines(subject: Subject, sibling: str) -> None:
    kind, make, inputs = SIBLINGS[sibling]
    parts = make(subject)
    wanted = subject.draw(subject.floating, kind, parts, **inputs)
    assert psnr(wanted, subject.draw(subject.open(), kind, parts, **inputs)) > 20


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_guidance_and_weighted_prompts_are_as_with_the_float_model(subject: Subject, guidance_scale: float) -> None:
    pipe = subject.plain
    embeds = pipe.encode_prompt("a red dog", None, **({"prompt_3": None} if subject.family == "sd3" else {}))
    given = {"prompt_embeds": 1.3 * embeds[0], "guidance_scale": guidance_scale}
    if subject.family == "sd3":
        given |= {"negative_prompt_embeds": embeds[1], "negative_pooled_prompt_embeds": embeds[3]}
    given["pooled_prompt_embeds"] = embeds[2] if subject.family == "sd3" else embeds[1]
    assert psnr(subject.draw(pipe.transformer, **given), subject.draw(subject.open(), **given)) > 20


def test_clip_skip_is_free_where_no_row_is_stored(tmp_path: Path) -> None:
    subject = made("sd3", tmp_path)
    wanted = subject.draw(subject.floating, clip_skip=1)
    assert psnr(wanted, subject.draw(subject.open(), clip_skip=1)) > 20
    assert not torch.equal(wanted, subject.draw(subject.floating))


def test_a_new_word_is_taught_to_the_text_encoder(tmp_path: Path) -> None:
    subject, vector = made("flux", tmp_path), torch.linspace(-10, 10, TEXT_WIDTH)
    before = subject.draw(subject.floating, prompt="a <mine>")
    names = {"text_encoder": subject.plain.text_encoder, "tokenizer": subject.plain.tokenizer}
    subject.plain.load_textual_inversion({"<mine>": vector}, token="<mine>", **names)
    wanted = subject.draw(subject.floating, prompt="a <mine>")
    assert psnr(wanted, subject.draw(subject.open(), prompt="a <mine>")) > 20
    assert not torch.equal(wanted, before)
