"""A plan carried out: the quantized pipeline on disk, its pictures, and its numbers against floating point."""

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mixdq.allocation.plans import mean_bits
from mixdq.evaluation.compare import compare
from mixdq.evaluation.memory import weight_bytes_on_disk
from mixdq.metrics.sqnr import sqnr_per_sample
from mixdq.pipeline.family import find_family
from mixdq.pipeline.load import load_pipeline
from mixdq.store.artifact import atomic_write, digest_of, digest_of_file
from mixdq.store.json_file import decode, encode, read_json, write_json
from mixdq.types.evaluation import Evaluation
from mixdq.types.layers import LayerTable
from mixdq.types.plan import FLOAT_BITS, BitPlan
from mixdq.types.receipt import Receipt
from mixdq.types.tensors import CalibrationRecord
from mixdq.workflow.cost import float_cost, folder_cost
from mixdq.workflow.denoiser import quantize_denoiser
from mixdq.workflow.doctor import machine_facts
from mixdq.workflow.drawing import draw, first_outputs, halved, metrics_for, open_in_float32, read_outputs, silent
from mixdq.workflow.pictures import read_pictures, write_pictures
from mixdq.workflow.reporting import EVALUATION, MANIFEST, RECEIPT, encode_evaluation, picture_path
from mixdq.workflow.session import Session, VariantPaths, prompts_digest
from mixdq.workflow.settings import device_of, dtype_of, evaluation_prompts

if TYPE_CHECKING:
    from mixdq.pipeline.family import Pipeline


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the floating-point model draws: pictures [N, 3, H, W], its first denoiser outputs [N, ...], its numbers."""

    prompts: tuple[str, ...]
    pictures: Tensor
    outputs: Tensor
    evaluation: Evaluation


def convert(
    session: Session,
    paths: VariantPaths,
    plan: BitPlan,
    table: LayerTable,
    record: CalibrationRecord,
    *,
    own: bool = True,
) -> Receipt:
    """Return the receipt of a conversion; the quantized pipeline is in `paths.model`, a diffusers folder."""
    settings = session.config.conversion
    origin = {
        "plan": digest_of_file(paths.plan),
        "calibration": digest_of(encode(dict[str, str], dict(record.origin))),
        "conversion": digest_of(settings.model_dump(mode="json")),
    }

    def make() -> Receipt:
        pipe, denoiser = session.pipe, session.family.denoiser(session.pipe)
        # It is changed for good from here on: whoever wants the floating-point model next loads it again.
        session.release()
        session.converted = True
        receipt = quantize_denoiser(denoiser, plan, table, record, **settings.model_dump(), progress=session.progress)
        # Never may the receipt of one model lie beside another, wherever the process is killed.
        paths.receipt.unlink(missing_ok=True)
        save_pipeline(pipe, paths.model)
        receipt = replace(receipt, machine=machine_facts())
        write_json(paths.receipt, RECEIPT, encode(Receipt, receipt), origin)
        return receipt

    def read() -> tuple[Receipt, dict[str, str]]:
        found = read_json(paths.receipt, RECEIPT)
        made_from = found.origin if (paths.model / "model_index.json").is_file() else {}
        return decode(paths.receipt, RECEIPT, Receipt, found.content), made_from

    return session.resolve(paths.receipt, command="mixdq apply", expected=origin, read=read, make=make, own=own)


def save_pipeline(pipe: "Pipeline", folder: Path) -> None:
    """Save a pipeline to `folder`, whole or not at all; what was there before is replaced."""
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with halved(pipe), silent():
            pipe.save_pretrained(partial)
        open_in_float32(partial)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    except SafetensorError as error:
        # safetensors has words of its own for what the system refuses.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def reference(session: Session, table: LayerTable) -> Reference:
    """Return what the floating-point model draws, made once and kept in images/float/."""
    folder, prompts = session.paths.reference, evaluation_prompts(session.config)
    manifest, outputs = folder / "manifest.json", folder / "outputs.safetensors"
    origin = _evaluation_origin(session, prompts) | {"layers": session.layers_digest(table)}

    def make() -> Reference:
        trace = draw(session, session.pipe, prompts)
        manifest.unlink(missing_ok=True)
        files = write_pictures(folder, trace.pictures)
        first = first_outputs(trace)
        atomic_write(outputs, safetensors.torch.save({"outputs": first}))
        pictures = read_pictures(files)
        metrics = metrics_for(session, session.pipe)
        # Against itself every measure is perfect; only what looks at prompts has something to say.
        scores = compare(pictures, pictures, prompts, [metric for metric in metrics if metric.name == "clip_score"])
        cost = float_cost(session)
        evaluation = Evaluation(
            name="floating point",
            method="float",
            weight_bits=float(FLOAT_BITS),
            activation_bits=float(FLOAT_BITS),
            weight_bytes=2 * sum(one.numel() for one in session.family.denoiser(session.pipe).parameters()),
            ssim=1.0,
            psnr_db=float("inf"),
            sqnr_db=float("inf"),
            clip_score=scores.means.get("clip_score"),
            per_picture=scores.per_picture,
            seconds=cost.seconds,
            peak_memory=cost.peak_memory,
        )
        write_json(manifest, MANIFEST, {"prompts": list(prompts), "evaluation": encode_evaluation(evaluation)}, origin)
        return Reference(prompts=prompts, pictures=pictures, outputs=first, evaluation=evaluation)

    def read() -> tuple[Reference, dict[str, str]]:
        found = read_json(manifest, MANIFEST)
        evaluation = decode(manifest, MANIFEST, Evaluation, found.content.get("evaluation"))
        drawn = read_pictures([picture_path(folder, index) for index in range(len(prompts))])
        kept = Reference(prompts=prompts, pictures=drawn, outputs=read_outputs(outputs), evaluation=evaluation)
        return kept, found.origin

    return session.resolve(manifest, command="mixdq evaluate", expected=origin, read=read, make=make, own=True)


def evaluate(
    session: Session,
    paths: VariantPaths,
    plan: BitPlan,
    table: LayerTable,
    reference: Reference,
    *,
    name: str | None = None,
    method: str = "mixdq",
    own: bool = True,
) -> Evaluation:
    """Return the numbers of a converted variant against the reference, kept in `paths.evaluation`."""
    weight_bits, activation_bits = mean_bits(plan, table)
    label = name or f"MixDQ W{weight_bits:.3g}A{activation_bits:.3g}"
    origin = _evaluation_origin(session, reference.prompts) | {
        "receipt": digest_of_file(paths.receipt),
        "reference": digest_of_file(session.paths.reference / "manifest.json"),
        "label": digest_of([label, method]),
    }

    def make() -> Evaluation:
        session.release()
        pipe = load_pipeline(paths.model, dtype=dtype_of(session.config), device=device_of(session.config))
        trace = draw(session, pipe, reference.prompts)
        paths.evaluation.unlink(missing_ok=True)
        pictures = read_pictures(write_pictures(paths.images, trace.pictures))
        scores = compare(reference.pictures, pictures, reference.prompts, metrics_for(session, pipe))
        noise = sqnr_per_sample(reference.outputs, first_outputs(trace)).tolist()
        denoiser_name = find_family(pipe).denoiser_name
        del pipe
        cost = folder_cost(session, paths.model)
        evaluation = Evaluation(
            name=label,
            method=method,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            weight_bytes=weight_bytes_on_disk(paths.model / denoiser_name),
            ssim=scores["ssim"],
            psnr_db=scores["psnr"],
            sqnr_db=sum(noise) / len(noise),
            clip_score=scores.means.get("clip_score"),
            per_picture=dict(scores.per_picture) | {"sqnr": tuple(noise)},
            seconds=cost.seconds,
            peak_memory=cost.peak_memory,
        )
        write_json(paths.evaluation, EVALUATION, encode_evaluation(evaluation), origin)
        return evaluation

    def read() -> tuple[Evaluation, dict[str, str]]:
        found = read_json(paths.evaluation, EVALUATION)
        files = [picture_path(paths.images, index) for index in range(len(reference.prompts))]
        made_from = found.origin if all(file.exists() for file in files) else {}
        if made_from:
            read_pictures(files)
        return decode(paths.evaluation, EVALUATION, Evaluation, found.content), made_from

    return session.resolve(paths.evaluation, command="mixdq evaluate", expected=origin, read=read, make=make, own=own)


def _evaluation_origin(session: Session, prompts: tuple[str, ...]) -> dict[str, str]:
    settings = [session.config.evaluation.model_dump(mode="json"), session.config.generation.model_dump(mode="json")]
    return {"prompts": prompts_digest(prompts), "settings": digest_of(settings)}
