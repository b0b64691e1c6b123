"""The authors' sensitivities of the real SDXL-Turbo, and the plans they released, which an exact solver finds again.

The files are another project's data without a licence: they are read where they lie and never copied. Where they are
absent, these tests skip. Expected numbers are those of the released plans themselves.
"""

import functools
from pathlib import Path

import pytest
import yaml

from mixdq.allocation.program import Solution, solve
from mixdq.allocation.protect import protected_layers

Table = dict[str, dict[int, float]]

HERE = Path(__file__).resolve()
FOLDERS = [up / "shared" / "data" / "sdxl_turbo" for up in HERE.parents[2:4]]
DATA = next((folder for folder in FOLDERS if folder.is_dir()), None)

pytestmark = pytest.mark.skipif(
    DATA is None, reason="needs shared/data/sdxl_turbo (the authors' tables) in or above the checkout; not distributed"
)


@functools.cache
def load(name: str) -> dict:
    assert DATA is not None
    with open(DATA / f"{name}.yaml", encoding="utf-8") as file:
        entries = yaml.load(file, yaml.CSafeLoader)
    return {key.removeprefix("model."): value for key, value in entries.items()}


def scores(role: str, metric: str, layers: list[str], widths: tuple[int, ...]) -> Table:
    table = load(f"sensitivity_{role}_{metric}")
    return {name: {b: v for b, v in zip((2, 4, 8), table[name], strict=True) if b in widths} for name in layers}


def content() -> list[str]:
    return [name for name in load("size_weight") if ".attn2." in name or ".ff." in name]


def quality() -> list[str]:
    return [name for name in load("size_weight") if name not in set(content())]


def weights(group: str, most: float, least: float | None = None) -> tuple[Solution, Table]:
    layers, metric, widths = (content(), "ssim", (2, 4, 8)) if group == "content" else (quality(), "sqnr", (4, 8))
    table = scores("weight", metric, layers, widths)
    sizes = {name: load("size_weight")[name] for name in layers}
    return solve(table, sizes, most, least), table


def spent(plan: dict[str, int], layers: list[str]) -> float:
    sizes = load("size_weight")
    return sum(sizes[name] * plan[name] for name in layers) / sum(sizes[name] for name in layers)


def test_tables_hold_the_layers_of_sdxl() -> None:
    assert (len(content()), len(quality())) == (420, 374)
    assert set(content()) == set(load("sensitivity_weight_ssim"))
    sizes = load("size_weight")
    assert sum(sizes[n] for n in content()) / sum(sizes[n] for n in quality()) == pytest.approx(2.241823, abs=1e-6)


def test_weight_4_00_is_found_layer_for_layer() -> None:
    released = load("released_weight_4.00")
    found = {}
    for group, layers, mean, objective in (
        ("content", content(), 3.36353, 419.241625),
        ("quality", quality(), 5.44757, 27085.886555),
    ):
        # The budget of the released plan is what it spends: the solver may use as much and no more.
        solution, _ = weights(group, spent(released, layers))
        assert solution.mean_bits == pytest.approx(mean, abs=5e-6)
        assert solution.objective == pytest.approx(objective, abs=1e-6)
        found |= solution.bits
    assert sum(found[name] == bits for name, bits in released.items()) == len(released) == len(found) == 794


def test_weight_8_00_is_found_layer_for_layer() -> None:
    released = load("released_weight_8.00")
    found = {}
    for group, mean, objective in (("content", 7.98301, 419.966553), ("quality", 8.0, 29507.771828)):
        solution, _ = weights(group, 8.02, 7.98)
        assert solution.mean_bits == pytest.approx(mean, abs=5e-6)
        assert solution.objective == pytest.approx(objective, abs=1e-6)
        found |= solution.bits
    assert sum(found[name] == bits for name, bits in released.items()) == len(released) == len(found) == 794


def test_sizes_in_elements_give_the_same_plan_as_sizes_in_units() -> None:
    released = load("released_weight_4.00")
    table = scores("weight", "ssim", content(), (2, 4, 8))
    elements = {name: float(round(load("size_weight")[name] * 11520)) for name in content()}
    solution = solve(table, elements, spent(released, content()))
    assert solution.bits == {name: released[name] for name in content()}


def test_protected_activations_are_those_of_the_paper() -> None:
    groups = dict.fromkeys(content(), "content") | dict.fromkeys(quality(), "quality")
    table = scores("activation", "ssim", content(), (4, 8)) | scores("activation", "sqnr", quality(), (4, 8))
    protected = protected_layers(groups, table, {"content": (4, 8), "quality": (4, 8)}, share=0.01)
    assert protected[0] == "down_blocks.2.attentions.1.transformer_blocks.6.ff.net.2"
    assert set(protected[:5]) == {
        *(f"down_blocks.2.attentions.1.transformer_blocks.{i}.ff.net.2" for i in (5, 6, 7, 8)),
        "up_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",
    }
    assert protected[5:] == (
        "conv_in",
        "conv_out",
        "down_blocks.0.resnets.0.conv2",
        "up_blocks.2.resnets.2.conv_shortcut",
    )
