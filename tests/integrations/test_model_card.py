import math
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from mixdq.errors import ArtifactFormatError, ConfigError
from mixdq.integrations.model_card import SHOWN, write_model_card
from mixdq.report.facts import ReportFacts, Variant
from mixdq.types.evaluation import Evaluation
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import BitPlan, LayerBits
from mixdq.types.receipt import LayerReceipt, Receipt

HOSTILE = "<script>alert(1)</script> | \n--- `x`"
PROMPTS = ("a red apple", HOSTILE, *(f"{i} whales" for i in range(SHOWN)))
BITS = LayerBits(weight=4, activation=8)


def variant(folder: Path, name: str, method: str, bits: float, size: int, ssim: float) -> Variant:
    pictures = folder / name
    pictures.mkdir()
    for index in range(len(PROMPTS)):
        Image.new("RGB", (8, 8), (40 * index, int(bits), 120)).save(pictures / f"{index:03d}.png")
    numbers = Evaluation(
        name=name,
        method=method,
        weight_bits=bits,
        activation_bits=8.0,
        weight_bytes=size,
        ssim=ssim,
        psnr_db=math.inf,
        sqnr_db=20.0,
        clip_score=None,
        seconds=0.5,
    )
    plan = None if method == "float" else BitPlan(name=f"{name}-plan", layers={"conv_in": BITS})
    return Variant(evaluation=numbers, pictures=pictures, plan=plan)


@pytest.fixture
def facts(tmp_path: Path) -> ReportFacts:
    layer = LayerSpec(name="conv_in", op="linear", group="quality", weight_shape=(4, 8), input_numel=8, macs=32)
    part = LayerReceipt(layer="conv_in", bits=BITS, backend="cpu", refusals={}, bytes_before=64, bytes_after=20)
    return ReportFacts(
        title="Report",
        model="stabilityai/sdxl-turbo",
        environment={"torch": "2.13.0"},
        settings={"steps": "2", "guidance scale": "1.5", "seed": "0"},
        prompts=PROMPTS,
        variants=(
            variant(tmp_path, "floating point", "float", 16.0, 40 * 2**20, 1.0),
            variant(tmp_path, "MixDQ W4A8", "mixdq", 4.0, 10 * 2**20, 0.9876),
        ),
        layers=LayerTable(model="m", family="sdxl", digest="abc", layers=(layer,)),
        receipts=(Receipt(plan="MixDQ W4A8-plan", layers=(part,)),),
        warnings=("slow <b>by design</b>",),
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def test_the_hub_reads_its_metadata(facts: ReportFacts, saved: Path) -> None:
    card = ModelCard.load(write_model_card(facts, saved, license="openrail++"))
    assert card.data.to_dict() == {
        "base_model": "stabilityai/sdxl-turbo",
        "base_model_relation": "quantized",
        "library_name": "diffusers",
        "license": "openrail++",
        "pipeline_tag": "text-to-image",
        "tags": ["mixdq", "quantized", "w4a8"],
    }


def test_it_has_the_runs_numbers_and_how_to_open_the_model(facts: ReportFacts, saved: Path) -> None:
    text = write_model_card(facts, saved).read_text(encoding="utf-8")
    assert "0.9876" in text
    assert "10.0 MiB instead of 40.0" in text
    assert "num_inference_steps=2, guidance_scale=1.5" in text
    assert "import mixdq" in text
    assert "| cpu | W4A8 | 1 |" in text
    assert "| torch | 2.13.0 |" in text


def test_every_picture_that_it_shows_lies_beside_it_and_no_more(facts: ReportFacts, saved: Path) -> None:
    text = write_model_card(facts, saved).read_text(encoding="utf-8")
    files = sorted(path.relative_to(saved).as_posix() for path in saved.rglob("*.png"))
    assert len(files) == 2 * SHOWN
    assert all(text.count(f"![]({file})") == 1 for file in files)
    copied = (saved / "pictures" / "001-quantized.png").read_bytes()
    assert copied == facts.variants[1].picture_files(2)[1].read_bytes()


def test_a_hostile_prompt_breaks_neither_table_nor_page(facts: ReportFacts, saved: Path) -> None:
    text = write_model_card(facts, saved).read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "<b>" not in text
    rows = [line for line in text.splitlines() if "alert" in line]
    assert len(rows) == 1
    assert rows[0].replace(r"\|", "").count("|") == 4


def test_a_model_on_disk_is_no_base_on_the_hub(facts: ReportFacts, saved: Path) -> None:
    text = write_model_card(replace(facts, model="/some where/my-turbo"), saved).read_text(encoding="utf-8")
    assert "base_model" not in text
    assert "`my-turbo`" in text
    assert "/some where" not in text


def test_one_of_several_variants_must_be_named(facts: ReportFacts, saved: Path, tmp_path: Path) -> None:
    both = replace(facts, variants=(*facts.variants, variant(tmp_path, "MixDQ W8A8", "mixdq", 8.0, 2**24, 0.99)))
    with pytest.raises(ConfigError, match="MixDQ W4A8, MixDQ W8A8"):
        write_model_card(both, saved)
    with pytest.raises(ConfigError, match="MixDQ W4A8, MixDQ W8A8"):
        write_model_card(both, saved, variant="MixDQ W2A8")
    text = write_model_card(both, saved, variant="MixDQ W8A8").read_text(encoding="utf-8")
    assert "0.9900" in text
    assert "0.9876" not in text


def test_what_is_not_there_is_named(facts: ReportFacts, saved: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        write_model_card(facts, saved / "nowhere")
    facts.variants[1].picture_files(1)[0].unlink()
    for file in facts.variants[1].pictures.glob("*.png"):
        file.unlink()
    with pytest.raises(ArtifactFormatError, match="PNG pictures"):
        write_model_card(facts, saved)
