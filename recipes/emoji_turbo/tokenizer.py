"""The tokenizer: CLIP's byte-pair format, with merges learnt from the captions."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
END_OF_WORD = "</w>"


def train(texts: Iterable[str], size: int, length: int) -> CLIPTokenizer:
    """Return a tokenizer of `size` tokens that pads and cuts to `length`; EOS is also the padding, as in CLIP.

    The vocabulary is laid out as CLIP's: bytes, bytes that end a word, merges in order, BOS, EOS.
    """
    reference = CLIPTokenizer()
    learner = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    learner.normalizer = reference.backend_tokenizer.normalizer
    learner.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * size, initial_alphabet=alphabet, end_of_word_suffix=END_OF_WORD, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = _merges(learner)[: size - 2 * len(alphabet) - 2]
    tokens = [*alphabet, *(letter + END_OF_WORD for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: index for index, token in enumerate([*dict.fromkeys(tokens), BOS, EOS])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the tokenizer, with the two files that older readers of CLIP's format look for."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    """Return the learnt merges, best first."""
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
