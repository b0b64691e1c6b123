"""A small report with everything in it, made of numbers alone."""

import math
from pathlib import Path

import pytest
from PIL import Image

from mixdq.report.facts import ReportFacts, Variant
from mixdq.types.evaluation import Evaluation
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import BitPlan, LayerBits, SolverFacts
from mixdq.types.receipt import LayerReceipt, Receipt
from mixdq.types.scores import ROLES, Score, SensitivityTable

HOSTILE = "<script>alert('x')</script> | \"quoted\" & `code`"
PROMPTS = ("a red apple", HOSTILE, "a blue whale")
NAMES = ("conv_in", "down_blocks.0.attentions.0.attn2.to_k", "down_blocks.0.resnets.0.conv1", "conv_out")


def layer(name: str) -> LayerSpec:
    group = "content" if "attn2" in name else "quality"
    return LayerSpec(name=name, op="linear", group=group, weight_shape=(4, 8), input_numel=8, macs=32)


def plan(name: str, widths: tuple[int, ...]) -> BitPlan:
    layers = {n: LayerBits(weight=w, activation=8 if w < 16 else 16) for n, w in zip(NAMES, widths, strict=True)}
    return BitPlan(
        name=name, layers=layers, solver=SolverFacts(solver="HiGHS", objective="raw", values={"content": 1.0})
    )


def evaluation(name: str, method: str, mib: float, ssim: float, seconds: float = 1.0) -> Evaluation:
    noise = math.inf if ssim == 1 else 30 * ssim
    return Evaluation(
        name=name,
        method=method,
        weight_bits=16.0 if method == "float" else 4.0,
        activation_bits=16.0 if method == "float" else 8.0,
        weight_bytes=int(mib * 2**20),
        ssim=ssim,
        psnr_db=noise,
        sqnr_db=noise,
        clip_score=0.3 * ssim,
        seconds=seconds,
        peak_memory=2**29,
        per_picture={"ssim": (ssim, ssim / 2, ssim)},
    )


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="session")
def facts(run_folder: Path) -> ReportFacts:
    variants = []
    rows = [("float", "float", 16.0, 1.0, None), ("plain", "minmax", 4.0, 0.4, None)]
    for name, method, mib, ssim, bits in [*rows, ("mixed", "mixdq", 5.0, 0.9, (8, 4, 2, 16))]:
        folder = run_folder / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(len(PROMPTS)):
            Image.new("RGB", (16, 16), (40 * index, 80, 120)).save(folder / f"{index:03d}.png")
        found = None if bits is None else plan(f"{name}-plan", bits)
        variants.append(Variant(evaluation=evaluation(name, method, mib, ssim), pictures=folder, plan=found))
    refusals = {"cuda": ("needs a GPU, found none",), "cpu": ("2-bit weights are not packed",)}
    receipt = Receipt(
        plan="mixed-plan",
        layers=tuple(
            LayerReceipt(
                layer=n,
                bits=LayerBits(weight=4, activation=8),
                backend="reference",
                refusals=refusals,
                bytes_before=64,
                bytes_after=20,
            )
            for n in NAMES
        ),
    )
    scores = tuple(
        Score(
            layer=n,
            role=role,
            num_bits=bits,
            metric="ssim" if "attn2" in n else "sqnr",
            value=1 - 0.5 / 2**bits if "attn2" in n else (math.inf if bits == 8 and n == "conv_in" else 6.0 * bits),
        )
        for n in NAMES
        for role in ROLES
        for bits in (4, 8)
    )
    return ReportFacts(
        title=f"Report {HOSTILE}",
        model="a/model",
        environment={"torch": "2.13.0"},
        settings={"seed": "0"},
        prompts=PROMPTS,
        variants=tuple(variants),
        layers=LayerTable(model="a/model", family="sdxl", digest="abc", layers=tuple(layer(n) for n in NAMES)),
        sensitivity=SensitivityTable(scores=scores, origin={}),
        receipts=(receipt,),
        candidates={"mixed-plan": (("mixed-plan", 0.9), ("other-plan", 0.8))},
        warnings=("slow <b>by design</b>",),
    )
