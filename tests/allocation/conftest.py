from collections.abc import Callable

import numpy as np
import pytest

from mixdq.types.latency import LatencyTable
from mixdq.types.layers import LayerSpec, LayerTable
from mixdq.types.plan import LayerBits
from mixdq.types.scores import Score, SensitivityTable


def make_table(count: int = 40, seed: int = 0) -> LayerTable:
    """A denoiser of `count` layers, alternating groups, of which one has a joined input."""
    rng = np.random.default_rng(seed)
    layers = []
    for i in range(count):
        rows, columns = (int(n) for n in rng.integers(3, 400, size=2))
        conv = i % 5 == 0
        layers.append(
            LayerSpec(
                name=f"block.{i}",
                op="conv2d" if conv else "linear",
                group="content" if i % 2 else "quality",
                weight_shape=(rows, columns, 3, 3) if conv else (rows, columns),
                input_numel=int(rng.integers(10, 5000)),
                macs=rows * columns,
                input_splits=(1, columns - 1) if i == 5 else (),
            )
        )
    return LayerTable(model="tiny", family="sdxl", digest="d" * 64, layers=tuple(layers))


def make_scores(table: LayerTable, widths=(2, 4, 8), seed: int = 1, metrics=("ssim", "sqnr")) -> SensitivityTable:
    """Scores that rise with the width by and large, not always, as measured ones do."""
    rng = np.random.default_rng(seed)
    scores = []
    for layer in table:
        for role in ("weight", "activation"):
            for metric in metrics:
                for bits in widths:
                    noise = float(rng.normal())
                    value = 6.0 * bits + 8 * noise if metric == "sqnr" else 1.0 - 2.0**-bits * abs(noise) / 10
                    scores.append(Score(layer=layer.name, role=role, num_bits=bits, metric=metric, value=value))
    return SensitivityTable(scores=tuple(scores), origin={"model": table.digest})


@pytest.fixture(scope="session")
def table() -> LayerTable:
    return make_table()


@pytest.fixture(scope="session")
def sensitivity(table) -> SensitivityTable:
    return make_scores(table)


@pytest.fixture(scope="session")
def latencies() -> Callable[..., LatencyTable]:
    """The function that gives milliseconds for every pair of widths of a table's layers."""

    def make(table: LayerTable, seed: int = 0) -> LatencyTable:
        rng = np.random.default_rng(seed)
        pairs = [LayerBits(weight=w, activation=a) for w in (2, 4, 8, 16) for a in (4, 8, 16) if w < 16 or a == 16]
        return LatencyTable(
            layers={
                layer.name: {str(bits): float(rng.uniform(0.5, 1.5) * bits.weight * bits.activation) for bits in pairs}
                for layer in table
            },
            rest=7.0,
        )

    return make
