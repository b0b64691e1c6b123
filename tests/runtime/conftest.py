"""Quantized layers made from small random float ones."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixdq.quant.bos import BosRow
from mixdq.quant.qparams import activation_qparams
from mixdq.quant.weights import quantize_weight
from mixdq.runtime.capture import fresh
from mixdq.runtime.conv2d import QuantizedConv2d
from mixdq.runtime.graphs import use_graphs
from mixdq.runtime.layout import LayerLayout
from mixdq.runtime.linear import QuantizedLinear
from mixdq.testing import TEXT_WIDTH, TOKENS, tiny_sdxl_pipeline
from mixdq.types.plan import FLOAT_BITS, LayerBits
from mixdq.types.tensors import ActivationRange

RANGES = (ActivationRange(min=-3.0, max=2.5, batches=1), ActivationRange(min=-0.5, max=4.0, batches=1))

Quantize = Callable[..., QuantizedLinear | QuantizedConv2d]


@pytest.fixture
def quantized() -> Quantize:
    """Return a function (module, "W4A8", splits=, symmetric=, bos=, dynamic=, backend=) -> its quantized successor."""

    def make(
        module: nn.Linear | nn.Conv2d,
        bits: str,
        *,
        splits: tuple[int, ...] = (),
        symmetric: bool = True,
        bos: BosRow | None = None,
        dynamic: bool = False,
        backend: str = "reference",
    ) -> QuantizedLinear | QuantizedConv2d:
        widths = LayerBits.parse(bits)
        layout = LayerLayout(
            name="layer", bits=widths, symmetric=symmetric, splits=splits, bos=bos is not None, dynamic=dynamic
        )
        parts = quantize_weight(module.weight, widths.weight, symmetric=symmetric, number=widths.number, splits=splits)
        activation = None
        if widths.activation != FLOAT_BITS and not dynamic:
            ranges = RANGES[: len(parts)]
            activation = [activation_qparams(rng, widths.activation, widths.number) for rng in ranges]
        if isinstance(module, nn.Conv2d):
            return QuantizedConv2d.from_float(module, layout, parts, activation, backend=backend)
        return QuantizedLinear.from_float(module, layout, parts, activation, bos, backend=backend)

    return make


@pytest.fixture
def ranges() -> tuple[ActivationRange, ...]:
    """The ranges of the first and the second input part in `quantized`."""
    return RANGES


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Tape:
    """Does on a CPU what a CUDA graph does: real operators, noted once and run again on the same memory.

    Numbers are those of the recording, what is no operator is not run again, and waiting is an error.
    """

    device_type = "cpu"
    records = replays = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def run(self, call: Callable[[], Any]) -> Any:
        return fresh(call())

    def record(self, call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        type(self).records += 1
        with _Noting() as noted, torch.compiler.set_stance("force_eager"):
            result = call()

        def replay() -> None:
            type(self).replays += 1
            noted.run_again()

        return replay, result


class _Noting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._done: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.data_dependent_output in func.tags:
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        result = func(*args, **(kwargs or {}))
        self._done.append((func, args, kwargs or {}, result))
        return result

    def run_again(self) -> None:
        for func, args, kwargs, before in self._done:
            after = func(*args, **kwargs)
            # Views and what is written in place lie in the memory of before.
            if not any(one.alias_info for one in func._schema.returns):
                for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


@pytest.fixture
def tape() -> type[Tape]:
    """A recorder of CPUs, which counts what it recorded and what it ran again."""
    return type("CountedTape", (Tape,), {})


class Calls:
    """Calls of tiny UNets: with graphs and, as the oracle, without."""

    @staticmethod
    def inputs(seed: int, *, batch: int = 1, side: int = 8) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(seed)
        return {
            "sample": torch.randn(batch, 4, side, side, generator=draw),
            "timestep": torch.randint(1000, (), generator=draw),
            "encoder_hidden_states": torch.randn(batch, TOKENS, 2 * TEXT_WIDTH, generator=draw),
            "added_cond_kwargs": {
                "text_embeds": torch.randn(batch, TEXT_WIDTH, generator=draw),
                "time_ids": 16 * torch.rand(batch, 6, generator=draw),
            },
        }

    def capture(self, model: Any) -> None:
        for seed in range(2):
            model(**self.inputs(seed))

    def same(self, graphed: Any, plain: Any, seed: int = 7, **shape: int) -> None:
        found, expected = (model(**self.inputs(seed, **shape)).sample for model in (graphed, plain))
        assert torch.equal(found, expected)


@pytest.fixture
def calls() -> Iterator[Calls]:
    with torch.no_grad():
        yield Calls()


@pytest.fixture(scope="session")
def unet() -> Any:
    return tiny_sdxl_pipeline().unet


@pytest.fixture
def plain(unet: Any) -> Any:
    return copy.deepcopy(unet)


@pytest.fixture
def graphed(unet: Any, tape: type[Tape]) -> Any:
    model = copy.deepcopy(unet)
    use_graphs(model, tape)
    return model
