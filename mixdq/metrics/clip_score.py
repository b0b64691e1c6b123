"""How well pictures show their prompts: cosine of CLIP's picture and text embeddings, as in the paper's tables.

Works with any pair of transformers' CLIP towers that were trained together. The towers stay in floating point.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate
from transformers import (
    AutoTokenizer,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from mixdq.errors import UnsupportedModelError
from mixdq.metrics.inputs import check_finite, check_pictures

_BATCH = 32
_MODEL_TYPES = ("clip", "clip_text_model", "clip_vision_model")


@dataclass(frozen=True, kw_only=True)
class PictureStats:
    """How a picture is prepared for a vision tower: side in pixels, mean and (positive) deviation of each channel."""

    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise ValueError(
                f"mean {self.mean} and deviation {self.std}: expected three numbers each, deviations positive"
            )


class ClipScore:
    """The mean cosine, -1 to 1, between pictures and their prompts; higher is better. A `Metric`.

    The reference pictures are not looked at. A text tower taken from a pipeline keeps the pipeline's precision.
    """

    name = "clip_score"
    unit = ""
    higher_is_better = True

    def __init__(
        self,
        *,
        text_model: CLIPTextModelWithProjection,
        tokenizer: PreTrainedTokenizerBase,
        vision_model: CLIPVisionModelWithProjection,
        stats: PictureStats,
    ) -> None:
        widths = (text_model.config.projection_dim, vision_model.config.projection_dim)
        if widths[0] != widths[1]:
            raise UnsupportedModelError(
                f"the text tower embeds in {widths[0]} dimensions and the picture tower in {widths[1]}: "
                "they were not trained together"
            )
        self.text_model = text_model
        self.tokenizer = tokenizer
        self.vision_model = vision_model
        self.stats = stats

    @classmethod
    def from_pipeline(cls, pipe: Any, image_tower: str | Path) -> Self:
        """Return the score of a pipeline's own projecting text encoder and a vision tower trained against it.

        `image_tower` is a folder of a CLIPVisionModelWithProjection. Of the pipeline `text_encoder_2` is taken, else
        `text_encoder`, whichever has a projection; it is borrowed, not copied.

        Raises:
            UnsupportedModelError: no encoder projects, the folder is no vision tower, or the two do not fit.
        """
        for suffix in ("_2", ""):
            text_model = getattr(pipe, f"text_encoder{suffix}", None)
            tokenizer = getattr(pipe, f"tokenizer{suffix}", None)
            if isinstance(text_model, CLIPTextModelWithProjection) and tokenizer is not None:
                vision = _load(CLIPVisionModelWithProjection, image_tower).to(text_model.device)
                stats = _picture_stats(image_tower, vision.config)
                return cls(text_model=text_model, tokenizer=tokenizer, vision_model=vision, stats=stats)
        raise UnsupportedModelError(
            f"{type(pipe).__name__} has no CLIP text encoder with a projection; give a whole CLIP model instead"
        )

    @classmethod
    def from_pretrained(cls, model: str | Path) -> Self:
        """Return the score of a whole CLIPModel: a folder, or an id of the Hub; safetensors only, never pickle.

        Raises:
            UnsupportedModelError: there is no such CLIP model.
        """
        text = _load(CLIPTextModelWithProjection, model)
        vision = _load(CLIPVisionModelWithProjection, model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise UnsupportedModelError(f"{model}: no CLIP tokenizer there: {error}") from error
        return cls(
            text_model=text, tokenizer=tokenizer, vision_model=vision, stats=_picture_stats(model, vision.config)
        )

    def __call__(self, reference: Tensor, candidate: Tensor, prompts: Sequence[str] | None = None) -> float:
        """Return the mean over pictures."""
        return float(self.per_picture(reference, candidate, prompts).mean())

    def per_picture(self, reference: Tensor, candidate: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Return the cosine of each candidate picture and its prompt, float64 [pictures]."""
        if prompts is None:
            raise ValueError("clip_score needs the prompts of the pictures")
        return self.score(candidate, prompts)

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosine of each picture and its prompt, float64 [pictures].

        Raises:
            ValueError: not as many prompts as pictures, or no pictures in 0..1.
            NonFiniteError: NaN or infinity in pictures or in an embedding.
        """
        check_pictures(pictures, "candidate")
        if len(prompts) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures but {len(prompts)} prompts")
        return cosine_similarity(self.embed_pictures(pictures), self.embed_prompts(prompts), dim=1)

    @torch.no_grad()
    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Return the picture embeddings, float64 [pictures, dimensions] on the CPU."""
        tower = self.vision_model
        parts = [
            tower(pixel_values=prepare(chunk, self.stats).to(tower.device, tower.dtype)).image_embeds
            for chunk in torch.split(pictures, _BATCH)
        ]
        return _embeddings(parts, "picture embedding")

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return the prompt embeddings, float64 [prompts, dimensions] on the CPU; long prompts are cut."""
        tower = self.text_model
        parts = []
        for start in range(0, len(prompts), _BATCH):
            tokens = self.tokenizer(
                list(prompts[start : start + _BATCH]),
                padding="max_length",
                truncation=True,
                max_length=min(self.tokenizer.model_max_length, tower.config.max_position_embeddings),
                return_tensors="pt",
            )
            parts.append(tower(input_ids=tokens.input_ids.to(tower.device)).text_embeds)
        return _embeddings(parts, "prompt embedding")


def prepare(pictures: Tensor, stats: PictureStats) -> Tensor:
    """Return pictures [n, 3, size, size] as a vision tower wants them.

    The shorter side is resized (bicubic, antialiased), the middle is cut out, channels are normalised.
    """
    height, width = pictures.shape[-2:]
    factor = stats.size / min(height, width)
    shape = [max(stats.size, round(height * factor)), max(stats.size, round(width * factor))]
    x = pictures.detach().to(torch.float32)
    if shape != [height, width]:
        x = interpolate(x, size=shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (shape[0] - stats.size) // 2, (shape[1] - stats.size) // 2
    x = x[..., top : top + stats.size, left : left + stats.size]
    mean = torch.tensor(stats.mean, device=x.device)[:, None, None]
    std = torch.tensor(stats.std, device=x.device)[:, None, None]
    return (x - mean) / std


def _embeddings(parts: list[Tensor], name: str) -> Tensor:
    embeddings = torch.cat(parts).to("cpu", torch.float64)
    check_finite(embeddings, name)
    return embeddings


def _load(kind: Any, model: str | Path) -> Any:
    """Return the tower in float32 and evaluation mode; never with weights made up for missing ones."""
    # An id of the Hub has one slash at most; anything else that is not there would be reported as a malformed id.
    if not Path(model).exists() and (isinstance(model, Path) or str(model).count("/") != 1):
        raise UnsupportedModelError(f"{model}: no such folder; expected one of a {kind.__name__}")
    try:
        config, _ = PretrainedConfig.get_config_dict(model)
        if config.get("model_type") not in _MODEL_TYPES:
            raise UnsupportedModelError(f"{model}: no CLIP model there (model_type is {config.get('model_type')!r})")
        with _no_bar():
            tower, info = kind.from_pretrained(
                model, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UnsupportedModelError(f"{model}: cannot be opened as a {kind.__name__}: {error}") from error
    if info["missing_keys"]:
        raise UnsupportedModelError(f"{model}: is no {kind.__name__}, it lacks {sorted(info['missing_keys'])[:3]} ...")
    return tower.eval()


@contextmanager
def _no_bar() -> Iterator[None]:
    """Switch transformers' loading bar off for a while; on a terminal the command line draws its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _picture_stats(model: str | Path, config: Any) -> PictureStats:
    """Return mean and deviation of the model's preprocessor_config.json, 0.5 where it has none."""
    default = PictureStats(size=config.image_size)
    path = cached_file(str(model), "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return default
    try:
        stated = json.loads(Path(path).read_text(encoding="utf-8"))
        return PictureStats(
            size=config.image_size,
            mean=tuple(stated.get("image_mean", default.mean)),
            std=tuple(stated.get("image_std", default.std)),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise UnsupportedModelError(f"{path}: says not how pictures are prepared ({error}); copy it again") from error
