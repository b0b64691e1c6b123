"""The product compiled for cards that are not here: what Triton and ptxas make of it. Its results: test_layers.py."""

import re

import pytest

pytest.importorskip("triton")

import triton

from mixdq.runtime.kernels.gpu.configurations import Card, Sizes, choices
from mixdq.runtime.kernels.gpu.product import finish, product
from mixdq.runtime.kernels.gpu.weights import weight_order

POINTERS = {
    **dict.fromkeys(("x", "plane_0", "plane_1", "plane_2"), "*i8"),
    **dict.fromkeys(("sums", "row_zero", "partial"), "*i32"),
    **dict.fromkeys(("scale", "bias", "row_scale", "added"), "*fp32"),
    "y": "*fp16",
}
UNPACKING = r"shl\.b32 %r\d+, %r\d+, (\d+); and\.b32 %r\d+, %r\d+, (\d+);"
ENDS = {"of_codes": True, "has_bias": True, "has_added": False, "added": None}
ADDED = {**POINTERS, "added": "*fp16"}


def product_of(compiled, capability: int, num_bits: int, *, is_window: bool):
    """The product in tiles of 128 x 128, as it would be called."""
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
    tile, *_ = (t for t in choices(sizes, card) if (t.rows, t.columns, t.split) == (128, 128, 1))
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
        "operand": triton.language.int8,
        "symmetric": True,
        "through_registers": not card.reads_shared,
        "zero_points": None,
        "split": 1,
        **ENDS,
        "has_added": is_window,
        "block_rows": tile.rows,
        "block_columns": tile.columns,
    }
    if is_window:
        # A resnet's second convolution, whose residual is added.
        del constants["added"]
    return compiled(product, capability, constants, ADDED, warps=tile.warps, stages=tile.stages)


@pytest.mark.parametrize(
    ("capability", "instruction"),
    [
        (80, r"mma\.sync\S*\.s32\.s8\.s8"),
        (89, r"mma\.sync\S*\.s32\.s8\.s8"),
        (90, r"wgmma\.mma_async\S*\.s32\.s8\.s8"),
    ],
    ids=["Ampere", "Ada", "Hopper"],
)
@pytest.mark.parametrize(("num_bits", "is_window"), [(8, True), (4, False)], ids=["W8 convolution", "W4 linear"])
def test_it_runs_on_the_integer_matrix_units_from_aligned_loads_without_spilling(
    compiled, stack_and_registers, capability: int, instruction: str, num_bits: int, is_window: bool
) -> None:
    kernel = product_of(compiled, capability, num_bits, is_window=is_window)
    assert re.search(instruction, kernel.asm["ptx"])
    copies = re.findall(r"async_copy_global_to_local.*contiguity = (\d+)", kernel.asm["ttgir"])
    assert set(copies) == {"16"}
    # One turn of the loop at least is on its way while another is computed.
    assert min(map(int, re.findall(r"local_alloc : \(\) -> !ttg.memdesc<(\d+)x\d+x\d+xi8", kernel.asm["ttgir"]))) >= 2
    card = Card(capability=divmod(capability, 10), multiprocessors=1)
    assert kernel.metadata.shared <= card.generation.shared_kib * 2**10
    # Sums take 256 bytes or more of each thread: were they spilled, the stack would be larger.
    assert stack_and_registers(kernel)[0] < 256
    assert_columns_go_16_bytes_at_once(kernel)
    loop = kernel.asm["ttgir"].split("scf.for")[1].split("scf.yield")[0]
    assert "tt.dot" in loop or "warp_group_dot" in loop
    assert not re.search("divsi|remsi", loop)
    # Codes stay four in a register.
    assert len(re.findall(r"prmt|cvt\.s16", kernel.asm["ptx"])) < 4
    if num_bits < 8:
        assert_codes_are_unpacked_four_at_once(kernel, num_bits)


@pytest.mark.parametrize(
    ("capability", "instruction"),
    [(100, r"tcgen05\.mma\S*kind::i8"), (120, r"mma\.sync\S*\.s32\.s8\.s8")],
    ids=["Blackwell", "Blackwell for desktops"],
)
def test_on_newer_cards_too_it_runs_on_the_integer_matrix_units(compiled, capability: int, instruction: str) -> None:
    assert re.search(instruction, product_of(compiled, capability, 4, is_window=False).asm["ptx"])


def assert_codes_are_unpacked_four_at_once(kernel, num_bits: int) -> None:
    """Every field of every byte comes out in the top bits of its byte."""
    found = re.findall(UNPACKING, kernel.asm["ptx"])
    steps = sorted({(int(up), int(mask)) for up, mask in found}, reverse=True)
    assert len(steps) == 8 // num_bits
    high = 8 - num_bits
    for j in range(len(steps)):
        up, mask = steps[j]
        for first in range(0, 256, 4):
            codes = [((byte >> (num_bits * j)) % 2**num_bits) << high for byte in range(first, first + 4)]
            word = int.from_bytes(bytes(range(first, first + 4)), "little")
            assert ((word << up) & mask).to_bytes(4, "little") == bytes(codes)


def assert_columns_go_16_bytes_at_once(kernel) -> None:
    """Outputs, and what is added to them, two bytes each."""
    assert set(re.findall(r"st\.global\S*", kernel.asm["ptx"])) == {"st.global.v4.b32"}
    assert "ld.global.b16" not in kernel.asm["ptx"]


@pytest.mark.parametrize("ones", [(), ("columns",)], ids=["many columns", "one column"])
def test_the_sum_of_parts_compiles(compiled, ones: tuple[str, ...]) -> None:
    constants = {**ENDS, "split": 2, "block_rows": 32, "block_columns": 64, "has_added": True}
    del constants["added"]
    kernel = compiled(finish, 80, constants, ADDED, ones=ones)
    if not ones:
        assert_columns_go_16_bytes_at_once(kernel)
        assert "ld.global.v4.b32" in kernel.asm["ptx"]


def test_it_ends_sums_of_floats_too(compiled) -> None:
    constants = {**ENDS, "split": 1, "block_rows": 32, "block_columns": 64, "has_added": True}
    del constants["added"]
    kernel = compiled(finish, 89, constants, {**ADDED, "partial": "*fp32"})
    assert_columns_go_16_bytes_at_once(kernel)
    assert "ld.global.v4.b32" in kernel.asm["ptx"]
