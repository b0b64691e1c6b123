import json

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from mixdq.errors import StaleArtifactError
from mixdq.pipeline.generate import GenerationSpec, generate
from mixdq.runtime.kernels import native
from mixdq.store.plan_file import read_plan
from mixdq.testing import tiny_sdxl_pipeline
from mixdq.workflow import steps, variants
from mixdq.workflow.doctor import machine_facts
from mixdq.workflow.pictures import read_pictures
from mixdq.workflow.settings import evaluation_prompts


def test_saved_variant_draws_the_pictures_that_are_on_file(run) -> None:
    pipe = DiffusionPipeline.from_pretrained(run.variant.model)
    pipe.set_progress_bar_config(disable=True)
    kept = read_pictures(sorted(run.variant.images.glob("*.png")))
    drawn = generate(pipe, evaluation_prompts(run.config), run.spec)
    assert torch.equal((drawn * 255).round(), (kept * 255).round())


def test_floating_point_is_perfect_against_itself(run) -> None:
    reference = variants.reference(run, steps.inspect(run))
    one = reference.evaluation
    assert (one.ssim, one.psnr_db, one.sqnr_db) == (1.0, float("inf"), float("inf"))
    assert one.weight_bytes == 2 * sum(weight.numel() for weight in run.pipe.unet.parameters())
    assert len(reference.prompts) == reference.pictures.shape[0] == reference.outputs.shape[0] == 2


def test_numbers_on_file_are_those_of_the_pictures(run) -> None:
    table = steps.inspect(run)
    reference = variants.reference(run, table)
    found = variants.evaluate(run, run.variant, read_plan(run.variant.plan), table, reference, own=False)
    assert found.ssim == pytest.approx(sum(found.per_picture["ssim"]) / 2)
    assert found.name.startswith("MixDQ W")
    assert 0 < found.ssim < 1
    assert found.weight_bytes < reference.evaluation.weight_bytes


def test_receipt_counts_only_with_its_model(run) -> None:
    table, record = steps.inspect(run), steps.calibrate(run)
    (run.variant.model / "model_index.json").unlink()
    with pytest.raises(StaleArtifactError, match=r"receipt\.json.*mixdq apply"):
        variants.convert(run, run.variant, read_plan(run.variant.plan), table, record, own=False)
    receipt = variants.convert(run, run.variant, read_plan(run.variant.plan), table, record)
    assert receipt.bytes_after < receipt.bytes_before
    assert (run.variant.model / "model_index.json").is_file()


def test_receipt_says_which_machine_made_it_and_what_its_kernels_run_on(run) -> None:
    machine = json.loads(run.variant.receipt.read_text())["machine"]
    assert machine == machine_facts()
    assert machine["cpu kernels"].startswith(native.description())


def test_receipt_is_gone_while_a_model_is_replaced(run, monkeypatch) -> None:
    run.variant.plan.write_text(run.variant.plan.read_text().replace("W4A8", "W8A8"))
    monkeypatch.setattr(variants, "save_pipeline", lambda *_: pytest.fail("no receipt") if seen() else stop())

    def seen() -> bool:
        return run.variant.receipt.exists()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.apply(run)


def test_pipeline_is_saved_whole_or_not_at_all(run, monkeypatch, tmp_path) -> None:
    folder = tmp_path / "saved"
    variants.save_pipeline(run.pipe, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(run.pipe.vae, "save_pretrained", lambda *_, **__: full())

    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        variants.save_pipeline(run.pipe, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_parts_stored_in_half_open_in_one_type_and_draw(tmp_path) -> None:
    pipe = tiny_sdxl_pipeline()
    for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.vae):
        part.to(torch.float16).to(torch.float32)
    variants.save_pipeline(pipe, tmp_path / "saved")
    assert load_file(tmp_path / "saved/text_encoder/model.safetensors").popitem()[1].dtype == torch.float16
    opened = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    opened.set_progress_bar_config(disable=True)
    assert opened.text_encoder.dtype == opened.text_encoder_2.dtype == opened.unet.dtype == torch.float32
    assert torch.equal(generate(opened, ["a dog"], GenerationSpec()), generate(pipe, ["a dog"], GenerationSpec()))


def test_replaced_pipeline_leaves_nothing_of_the_old_one(run, tmp_path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "old.txt").write_text("old")
    variants.save_pipeline(run.pipe, folder)
    assert not (folder / "old.txt").exists()
    assert (folder / "model_index.json").is_file()
