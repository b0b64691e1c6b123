"""What other tests show of one family, shown of every other; tiny models, weights quantized while they load."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import mixdq
from mixdq.config import build_config
from mixdq.conversion.convert import convert
from mixdq.errors import ConfigError, UnsupportedModelError
from mixdq.integrations.diffusers import MixDQConfig
from mixdq.metrics.psnr import psnr
from mixdq.pipeline.family import find_family
from mixdq.pipeline.generate import GenerationSpec
from mixdq.runtime.kernels import native
from mixdq.store.plan_file import write_plan
from mixdq.testing import HEAD_WIDTH, HEADS, tiny_flux_pipeline, tiny_sd3_pipeline, tiny_sd_pipeline
from mixdq.types.plan import BitPlan, LayerBits
from mixdq.workflow.session import Session
from mixdq.workflow.transfer import apply_plan

MAKERS = {"sd": tiny_sd_pipeline, "flux": tiny_flux_pipeline, "sd3": tiny_sd3_pipeline}
NOT_FLOAT = {"sd": "time_embedding", "flux": "time_text_embed", "sd3": "time_text_embed"}
PROMPTS = ("a red dog", "two cats")
SPEC = GenerationSpec(height=16, width=16)
RECIPE: dict[str, Any] = {"weight_bits": 8, "backend": "reference"}


@dataclass(frozen=True)
class Subject:
    """A family, and the folder of a float denoiser of it."""

    family: str
    folder: Path

    def pipe(self, denoiser: Any = None) -> Any:
        pipe = MAKERS[self.family]()
        if denoiser is not None:
            pipe.register_modules(**{find_family(pipe).denoiser_name: denoiser})
        return pipe

    def denoiser(self) -> Any:
        pipe = self.pipe()
        return find_family(pipe).denoiser(pipe)

    def open(self, folder: Path | None = None, **options: Any) -> Any:
        recipe = {"quantization_config": MixDQConfig(**RECIPE)} if folder is None else {}
        return type(self.denoiser()).from_pretrained(folder or self.folder, **recipe, **options)

    def draw(self, denoiser: Any = None, *, pipe: Any = None) -> Tensor:
        return mixdq.generate(pipe or self.pipe(denoiser), PROMPTS, size=16)


@pytest.fixture(scope="module", params=MAKERS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    subject = Subject(request.param, tmp_path_factory.mktemp(request.param))
    subject.denoiser().save_pretrained(subject.folder)
    return subject


def test_disks_pickles_and_all_of_the_memory_are_refused(subject: Subject, tmp_path: Path) -> None:
    model = subject.open()
    with pytest.raises(ConfigError, match="safetensors"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match=r"diffusion_pytorch_model\.bin"):
        subject.open(use_safetensors=False)
    with pytest.raises(ValueError, match="low_cpu_mem_usage"):
        subject.open(low_cpu_mem_usage=False)
    with pytest.raises(ConfigError, match="disk"):
        subject.open(device_map={"": "disk"})


def test_what_diffusers_keeps_in_float32_is_kept(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = NOT_FLOAT[subject.family]
    monkeypatch.setattr(type(subject.denoiser()), "_keep_in_fp32_modules", [kept])
    model = subject.open(dtype=torch.bfloat16)
    floats = {name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d)}
    assert floats
    assert all(name.startswith(kept) for name in floats)
    assert {model.get_submodule(name).weight.dtype for name in floats} == {torch.float32}


def test_a_file_of_diffusers_own_names_gives_the_model_that_the_folder_gives(subject: Subject, tmp_path: Path) -> None:
    save_file(subject.denoiser().state_dict(), tmp_path / "model.safetensors")
    options = {"config": str(subject.folder), "quantization_config": MixDQConfig(**RECIPE)}
    one = type(subject.denoiser()).from_single_file(str(tmp_path / "model.safetensors"), **options).state_dict()
    other = subject.open().state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def lora(model: nn.Module) -> dict[str, Tensor]:
    draw, tensors = torch.Generator().manual_seed(1), {}
    for name, module in model.named_modules():
        if name.endswith((".to_q", ".to_k", ".to_v")):
            tensors[f"{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=draw)
            tensors[f"{name}.lora_B.weight"] = 0.3 * torch.randn(module.out_features, 2, generator=draw)
    return tensors


def test_a_lora_is_fused_before_quantization_and_refused_unfused(subject: Subject, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    model = subject.denoiser()
    before = subject.draw(model)
    model.load_lora_adapter(lora(model), prefix=None, adapter_name="style")
    with pytest.raises(UnsupportedModelError, match="fuse_lora"):
        mixdq.inspect(subject.pipe(model), spec=SPEC)
    model.fuse_lora()
    model.unload_lora()
    fused = subject.draw(model)
    model.save_pretrained(tmp_path)
    quantized = subject.draw(subject.open(tmp_path, quantization_config=MixDQConfig(**RECIPE)))
    assert psnr(fused, quantized) > psnr(fused, before)


def test_dora_is_refused_and_adapters_are_not_saved(subject: Subject, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    model = subject.open()
    before = subject.draw(model)
    with pytest.raises(ConfigError, match="plain LoRA"):
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], use_dora=True))
    assert torch.equal(subject.draw(model), before)
    model.load_lora_adapter(lora(subject.denoiser()), prefix=None, adapter_name="style")
    with pytest.raises(ConfigError, match="save_lora_weights"):
        model.save_pretrained(tmp_path)


@pytest.mark.skipif(native.trouble() is not None, reason=str(native.trouble()))
def test_integer_kernels_on_the_cpu_draw_as_the_reference_does(subject: Subject) -> None:
    pictures = []
    for backend in ("cpu", "reference"):
        pipe = subject.pipe()
        table = mixdq.inspect(pipe, spec=SPEC)
        record = mixdq.calibrate(pipe, PROMPTS, table=table, spec=SPEC)
        plan = BitPlan(name="8", layers={layer.name: LayerBits(weight=8, activation=8) for layer in table})
        receipt = convert(find_family(pipe).denoiser(pipe), plan, table, record, backend=backend)
        assert {layer.backend for layer in receipt.layers} == {backend}
        pictures.append(subject.draw(pipe=pipe))
    # What lies between the layers rounds otherwise, and an input may fall on the other side of a code's border.
    assert psnr(*pictures) > 40


def test_compiled_whole_without_a_graph_break_it_draws_nearly_the_same(subject: Subject) -> None:
    if subject.family == "sd":
        pytest.skip("its blocks are SDXL's, which tests/end_to_end compiles; compiling a UNet takes long")
    model = subject.open()
    wanted = subject.draw(model)
    torch._dynamo.reset()
    model.compile(backend="aot_eager", fullgraph=True)
    assert psnr(wanted, subject.draw(model)) > 60
    torch._dynamo.reset()


def test_a_text_encoder_changed_after_quantization_is_followed(subject: Subject) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft: pip install peft")
    plain, pipe = subject.pipe(), subject.pipe(subject.open())
    before = subject.draw(pipe=plain)
    with torch.no_grad():
        for each in (plain, pipe):
            for weight in each.text_encoder.parameters():
                weight *= 1.2
    wanted = subject.draw(pipe=plain)
    assert not torch.equal(wanted, before)
    assert psnr(wanted, subject.draw(pipe=pipe)) > 25


def test_a_plan_is_carried_to_a_fine_tune(subject: Subject, tmp_path: Path) -> None:
    pipe = subject.pipe()
    pipe.save_pretrained(tmp_path / "tuned")
    names = [layer.name for layer in mixdq.inspect(pipe, spec=SPEC)]
    plan = BitPlan(name="8", layers=dict.fromkeys(names, LayerBits(weight=8, activation=8)))
    write_plan(tmp_path / "plan.toml", plan)
    config = build_config(
        {
            "model": {"path": str(tmp_path / "tuned")},
            "generation": {"height": 16, "width": 16},
            "selection": {"num_prompts": 1},
            "conversion": {"backend": "reference"},
        }
    )
    session = Session.start(tmp_path / "out", config)
    check, receipt = apply_plan(session, tmp_path / "plan.toml")
    assert check.outcome == "holds"
    assert {layer.layer: layer.bits for layer in receipt.layers} == plan.layers


def test_flux_follows_a_picture_prompt_as_its_dequantized_self_does(tmp_path: Path) -> None:
    subject, width, tokens = Subject("flux", tmp_path), 8, 4
    subject.denoiser().save_pretrained(tmp_path)
    draw, pictures = torch.Generator().manual_seed(2), []
    text = subject.denoiser().config.joint_attention_dim
    shapes = {"weight": (HEADS * HEAD_WIDTH, text), "bias": (HEADS * HEAD_WIDTH,)}
    content = {
        "image_proj": {
            "proj.weight": torch.randn(tokens * text, width, generator=draw),
            "proj.bias": torch.zeros(tokens * text),
            "norm.weight": torch.ones(text),
            "norm.bias": torch.zeros(text),
        },
        "ip_adapter": {
            f"0.to_{each}_ip.{part}": torch.randn(shape, generator=draw)
            for each in "kv"
            for part, shape in shapes.items()
        },
    }
    embeds = [torch.linspace(-1, 1, width).expand(1, 1, width)]
    shown = {"ip_adapter_image_embeds": embeds, "negative_ip_adapter_image_embeds": embeds}
    for model in (subject.open(), subject.open().dequantize()):
        pipe = subject.pipe(model)
        before = drawn(pipe)
        pipe.load_ip_adapter(content, "", "", image_encoder_pretrained_model_name_or_path=None)
        pictures.append(drawn(pipe, **shown))
        pipe.unload_ip_adapter()
        assert torch.equal(drawn(pipe), before)
    assert psnr(*pictures) > 60
    assert psnr(pictures[0], before) < 40


def drawn(pipe: Any, **options: Any) -> Tensor:
    given = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 16, "width": 16, "output_type": "pt"}
    images: Tensor = pipe("a red dog", **given, generator=torch.Generator().manual_seed(0), **options).images
    return images
