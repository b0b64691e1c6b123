"""The pass before a product, compiled for cards that are not here. Its results: test_activations.py."""

import pytest

pytest.importorskip("triton")

from mixdq.runtime.kernels.gpu import activations


@pytest.mark.parametrize("ones", [("x_channel",), ("x_pixel",)], ids=["channels last", "channels first"])
@pytest.mark.parametrize(("of_pictures", "dynamic"), [(False, False), (False, True), (True, True)])
def test_it_divides_truly_on_a_gpu(compiled, ones: tuple[str, ...], of_pictures: bool, dynamic: bool) -> None:
    ptx = ptx_of(compiled, 80, of_pictures=of_pictures, dynamic=dynamic, before="", silu=False, ones=ones)
    assert "div.rn.f32" in ptx
    assert "div.approx" not in ptx
    assert ".ftz" not in ptx
    assert "fma.rn.f32" not in ptx.split("div.rn.f32", 1)[1]
    # Of 16-bit channels that lie side by side 8 are read at once.
    assert ("ld.global.b16" in ptx) == (ones != ("x_channel",))


@pytest.mark.parametrize("before", ["affine", "layer_norm", "geglu"])
def test_with_a_norm_or_a_gate_before_it_compiles(compiled, before: str) -> None:
    silu = before == "affine"
    ptx = ptx_of(compiled, 90, of_pictures=silu, dynamic=False, before=before, silu=silu, ones=("x_channel",))
    assert "div.approx" not in ptx
    assert ("sqrt.rn.f32" in ptx) == (before == "layer_norm")
    assert "ld.global.v4.b32" in ptx
    assert "ld.global.b16" not in ptx


@pytest.mark.parametrize(
    ("capability", "before", "dynamic"), [(89, "", False), (90, "layer_norm", True), (100, "geglu", True)]
)
def test_floats_are_converted_by_an_instruction_and_written_wide(compiled, capability, before, dynamic) -> None:
    choices = {"low": -448, "high": 448, "floats": True, "before": before, "silu": False}
    ptx = ptx_of(compiled, capability, of_pictures=False, dynamic=dynamic, ones=("x_channel",), **choices)
    assert "cvt.rn.satfinite.e4m3x2.f32" in ptx
    assert "div.rn.f32" in ptx
    assert ("div.rn.f64" in ptx) == dynamic
    assert "st.global.v2.b32" in ptx
    assert "st.global.b8" not in ptx
    assert "ld.global.b16" not in ptx


def ptx_of(compiled, capability: int, *, of_pictures: bool, ones: tuple[str, ...], **choices: object) -> str:
    constants = {
        "low": -128,
        "high": 127,
        "of_codes": True,
        "floats": False,
        "of_pictures": of_pictures,
        **choices,
        "block_rows": 4,
        "block_channels": 256,
        "block_chunks": 64,
    }
    pointers = {"x": "*fp16", "prepared": "*i8", "scale": "*fp32", "zero": "*i32"}
    pointers |= {"row_scale": "*fp32", "row_zero": "*i32", "ranges": "*fp32", "epsilon": "fp32"}
    pointers |= dict.fromkeys(("weight", "bias"), "*fp32" if choices["before"] == "affine" else "*fp16")
    ptx: str = compiled(activations.prepare, capability, constants, pointers, ones=ones).asm["ptx"]
    return ptx
