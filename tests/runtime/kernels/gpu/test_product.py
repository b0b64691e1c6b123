"""The product compiled for cards that are not here: what Triton and ptxas make of it. Its results: test_layers.py."""

import re
import subprocess
from pathlib import Path

import pytest

from mixdq.runtime.kernels.gpu import available
from mixdq.runtime.kernels.gpu.configurations import Card, Sizes, choices
from mixdq.runtime.kernels.gpu.weights import weight_order

triton = pytest.importorskip("triton")

if available.interpreted():
    pytest.skip("kernels are interpreted, not compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from mixdq.runtime.kernels.gpu.product import product  # noqa: E402

INT8 = triton.language.int8
POINTERS = {
    **dict.fromkeys(("x", "plane_0", "plane_1", "plane_2", "zero_points"), "*i8"),
    **dict.fromkeys(("sums", "row_zero", "partial"), "*i32"),
    **dict.fromkeys(("scale", "bias", "row_scale", "added"), "*fp32"),
    "y": "*fp16",
}
ALIGNED = re.compile(r"columns|(x|y|dilated|strided)_(batch|line|pixel)")
"""Numbers that are multiples of 16 in every real layer, which Triton finds out by itself at a call."""


def compiled(capability: int, num_bits: int, *, is_window: bool, rows: int, columns: int):
    """The product in a tile that is chosen among for such a card."""
    order = weight_order(num_bits, 1280, 9, of_floats=False)
    sizes = Sizes(
        rows=4096,
        columns=1280,
        groups=1,
        steps=9 * order.tap_steps,
        depth=9 * order.depth,
        tile=order.tile,
        weight_bits=num_bits,
        input_bytes=1,
        of_codes=True,
    )
    card = Card(capability=divmod(capability, 10), multiprocessors=100)
    (tile,) = (t for t in choices(sizes, card) if (t.rows, t.columns, t.split) == (rows, columns, 1))
    fields = (*order.fields, 0, 0)
    constants = {
        "bits": num_bits,
        "field_0": fields[0],
        "field_1": fields[1],
        "field_2": fields[2],
        "tile": order.tile,
        "tiles": order.tiles,
        "kernel_width": 3,
        "is_window": is_window,
        "of_codes": True,
        "operand": INT8,
        "symmetric": True,
        "has_bias": True,
        "has_added": False,
        "split": 1,
        "block_rows": tile.rows,
        "block_columns": tile.columns,
    }
    names = product.arg_names
    signature = {name: "constexpr" if name in constants else POINTERS.get(name, "i32") for name in names}
    aligned = [name in POINTERS or bool(ALIGNED.fullmatch(name)) for name in names]
    hints = {(i,): [["tt.divisibility", 16]] for i, is_aligned in enumerate(aligned) if is_aligned}
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False}
    return triton.compile(
        ASTSource(product, signature, constants, hints), target=GPUTarget("cuda", capability, 32), options=options
    )


@pytest.mark.parametrize(
    ("capability", "instruction"),
    [(80, r"mma\.sync\S*\.s32\.s8\.s8"), (90, r"wgmma\.mma_async\S*\.s32\.s8\.s8")],
    ids=["Ampere", "Hopper"],
)
@pytest.mark.parametrize(("num_bits", "is_window"), [(8, True), (4, False)], ids=["W8 convolution", "W4 linear"])
def test_it_runs_on_the_integer_matrix_units_without_spilling(
    capability: int, instruction: str, num_bits: int, is_window: bool, tmp_path: Path
) -> None:
    kernel = compiled(capability, num_bits, is_window=is_window, rows=128, columns=128)
    assert re.search(instruction, kernel.asm["ptx"])
    assert (
        kernel.metadata.shared
        <= Card(capability=divmod(capability, 10), multiprocessors=1).generation.shared_kib * 2**10
    )
    (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run(
        [tool, "-res-usage", tmp_path / "kernel.cubin"], check=True, capture_output=True, text=True
    ).stdout
    assert re.findall(r"STACK:(\d+)", said) == ["0"]
