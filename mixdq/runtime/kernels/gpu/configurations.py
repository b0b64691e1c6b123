"""In what tiles a product may run on a card, and an estimate of its cycles for each choice.

The estimate knows what a multiprocessor does in a cycle (by generation, from NVIDIA's data sheets) and no more; it is
**not tuned on any card**. What was measured (`tuning`) goes before it.
"""

from dataclasses import dataclass

SPLITS = (1, 2, 4, 8, 16)
STEP_CYCLES = 100
"""What a turn of the loop takes at least: its barriers and addresses."""
TILE_CYCLES = 2500
"""What a tile costs besides its loop: filling the pipeline, the end."""
L2_BYTES = 40
"""What a multiprocessor gets of the L2 cache in a cycle."""
PIPELINE_SHARE = 0.85
"""Of the shared memory, for tiles that are on their way."""
FINISH_CYCLES = 6000
"""What a second kernel costs, which adds the parts of sums."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What one multiprocessor does in a cycle, multiplications of codes and of 16-bit floats; what a tile may hold."""

    codes: int
    floats: int
    shared_kib: int


GENERATIONS = {
    (8, 0): Generation(codes=2048, floats=1024, shared_kib=163),
    (8, 6): Generation(codes=1024, floats=256, shared_kib=99),
    (8, 9): Generation(codes=1024, floats=512, shared_kib=99),
    (9, 0): Generation(codes=4096, floats=2048, shared_kib=227),
    (10, 0): Generation(codes=8192, floats=4096, shared_kib=227),
    (12, 0): Generation(codes=1024, floats=512, shared_kib=99),
}
"""Compute capability -> rates; a card has those of the last one that is not above its own."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a configuration depends on of a card."""

    capability: tuple[int, int]
    multiprocessors: int

    @property
    def generation(self) -> Generation:
        """Its rates."""
        return GENERATIONS[max(known for known in GENERATIONS if known <= max(self.capability, (8, 0)))]

    @property
    def reads_shared(self) -> bool:
        """Whether its matrix units read shared memory (`wgmma`, `tcgen05`); others read registers (`mma.sync`)."""
        return (9, 0) <= self.capability < (12, 0)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a configuration depends on of a product: `rows` x `depth` times `depth` x `columns`, in tiles of `tile`."""

    rows: int
    columns: int
    groups: int
    steps: int
    depth: int
    tile: int
    weight_bits: int
    input_bytes: int
    of_codes: bool


@dataclass(frozen=True)
class Configuration:
    """A tile of the output, in how many parts its sum is computed, by how many warps, how many loads ahead."""

    rows: int
    columns: int
    split: int
    warps: int
    stages: int


TILES = ((256, 128, 8), (128, 128, 8), (64, 128, 4), (128, 64, 4), (64, 64, 4), (32, 64, 4), (16, 64, 4))
"""Rows, columns and warps of the tiles to choose among; a multiprocessor's registers hold no larger ones."""


def by_estimate(sizes: Sizes, card: Card) -> list[Configuration]:
    """Return the choices, the fewest estimated cycles first."""
    return sorted(choices(sizes, card), key=lambda choice: estimated_cycles(sizes, choice, card))


def choices(sizes: Sizes, card: Card) -> list[Configuration]:
    """Return what may be chosen: no part of a sum is empty, the pipeline fits the shared memory."""
    out = []
    shared = PIPELINE_SHARE * card.generation.shared_kib * 2**10
    for rows, columns, warps in TILES:
        if rows > 128 and card.capability < (9, 0):
            # Before Hopper, sums in registers, and these do not fit.
            continue
        # Products of float32 take no matrix unit, and many registers.
        if rows * columns > {1: 256, 2: 128, 4: 32}[sizes.input_bytes] * 128:
            continue
        step_bytes = (columns * sizes.weight_bits / 8 + rows * sizes.input_bytes) * sizes.depth / sizes.steps
        # What is in registers needs no place any more: of so many stages one less lies in shared memory.
        freed = 0 if card.reads_shared or sizes.input_bytes > 2 else 1
        stages = max(1, min(4, int(shared / step_bytes) + freed))
        # Hopper waits for every product; two tiles on a multiprocessor wait in turn, where registers allow it.
        paired = int((card.generation.shared_kib / 2 - 1) * 2**10 / step_bytes)
        some = [stages] if rows > 128 or not card.reads_shared or not 3 <= paired < stages else [paired, stages]
        for split in SPLITS:
            if split <= sizes.steps:
                out += [Configuration(rows=rows, columns=columns, split=split, warps=warps, stages=s) for s in some]
    return out


def estimated_cycles(sizes: Sizes, choice: Configuration, card: Card) -> float:
    """Return about how many cycles a product takes."""
    generation = card.generation
    tiles = -(-sizes.rows // choice.rows) * -(-sizes.columns // choice.columns) * sizes.groups * choice.split
    turns = -(-sizes.steps // choice.split)
    step_depth = sizes.depth / sizes.steps
    rate = generation.codes if sizes.of_codes else generation.floats
    computing = choice.rows * choice.columns * step_depth / rate
    loading = (choice.columns * sizes.weight_bits / 8 + choice.rows * sizes.input_bytes) * step_depth / L2_BYTES
    waves = -(-tiles // card.multiprocessors)
    cycles = waves * (turns * max(computing, loading, STEP_CYCLES * step_depth / sizes.tile) + TILE_CYCLES)
    return cycles + (FINISH_CYCLES if choice.split > 1 else 0)
