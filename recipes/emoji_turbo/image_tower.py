"""Stage 3, the domain's CLIP score: a small ViT and the text tower's last layer, trained against each other.

All the text layers that the UNet reads stay as `text_encoder` left them; only the last layer, the final norm and the
projection learn here. A batch holds several pictures of each thing it shows, which differ in colour and size alone, so
that both towers must tell these apart as well. The cosine of the two embeddings is the domain's CLIP score.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from recipes.emoji_turbo import autoencoder, captions, pictures, shapes, text_encoder, training
from recipes.emoji_turbo.config import Config, Workspace

log = logging.getLogger(__name__)

PIXEL_NOISE = 0.05
# How many pictures of one thing in one style a batch holds.
NEIGHBOURS = 4
ENCODE_BATCH = 128


class TwoTowers(nn.Module):
    """Both towers and the temperature: what is trained."""

    def __init__(self, text: CLIPTextModelWithProjection, image: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.text = text
        self.image = image
        self.log_scale = nn.Parameter(torch.tensor(2.6))

    def forward(self, ids: Tensor, images: Tensor) -> Tensor:
        """Return the symmetric contrastive loss of a batch of true pairs."""
        texts = functional.normalize(self.text(input_ids=ids).text_embeds, dim=-1)
        looks = functional.normalize(self.image(pixel_values=images).image_embeds, dim=-1)
        logits = texts.float() @ looks.float().T * self.log_scale.exp().clamp(max=100)
        truth = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, truth) + functional.cross_entropy(logits.T, truth)) / 2


@dataclass(frozen=True, kw_only=True)
class Towers:
    """The finished pair, with the tokenizer of the text side."""

    text: CLIPTextModelWithProjection
    image: CLIPVisionModelWithProjection
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Return [texts, projection_dim] unit vectors."""
        ids = tokenize(self.tokenizer, texts).to(self.text.device)
        parts = [self.text(input_ids=part).text_embeds for part in ids.split(ENCODE_BATCH)]
        return functional.normalize(torch.cat(parts).float(), dim=-1).cpu()

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Return [images, projection_dim] unit vectors of pictures in [-1, 1]."""
        parts = [
            self.image(pixel_values=part.to(self.image.device)).image_embeds for part in images.split(ENCODE_BATCH)
        ]
        return functional.normalize(torch.cat(parts).float(), dim=-1).cpu()


def train(config: Config, workspace: Workspace) -> Towers:
    """Return the trained towers; logs the retrieval accuracy among 100 captions of held-out pairs."""
    folder = workspace.stage("image_tower")
    words = text_encoder.load_tokenizer(config, workspace)
    text = text_encoder.train(config, workspace)
    torch.manual_seed(config.seed + 20)
    text.requires_grad_(False)
    last = (text.text_model.encoder.layers[-1], text.text_model.final_layer_norm, text.text_projection)
    for part in last:
        part.requires_grad_(True)
    towers = TwoTowers(text, shapes.image_tower(config)).to(config.device)
    renders = pictures.render(config, workspace)
    examples = captions.training_examples(config, renders.concepts)
    families = _families(examples)

    def step(_: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        texts, scenes = _contrasts(examples, families, config.contrastive.batch, generator)
        images = autoencoder.draw(config, renders, scenes)
        images = images + PIXEL_NOISE * torch.randn(images.shape, generator=generator)
        ids = tokenize(words, texts)
        # The tower is causal and pooled at the first EOS: padding past the longest caption changes nothing.
        length = int((ids != words.eos_token_id).sum(dim=1).max()) + 1
        return towers(ids[:, :length].to(config.device), images.to(config.device)), {}

    training.train(towers, config.contrastive, folder, step, seed=config.seed + 20, decay=0.98, weight_decay=0.02)
    text.requires_grad_(False)
    finished = Towers(text=text.eval(), image=towers.image.eval(), tokenizer=words)
    _report(config, finished, renders)
    return finished


def tokenize(words: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Return token ids padded to the encoder's length, as SDXL's pipeline makes them."""
    encoded = words(
        list(texts), padding="max_length", truncation=True, max_length=words.model_max_length, return_tensors="pt"
    )
    ids: Tensor = encoded["input_ids"]
    return ids


def _families(examples: Sequence[captions.Example]) -> list[list[int]]:
    """Return for each example, by index, those about the same objects in the same style, itself among them."""
    members: dict[tuple[object, ...], list[int]] = {}
    for index, example in enumerate(examples):
        members.setdefault((example.scenes[0].objects, example.scenes[0].style), []).append(index)
    return [members[(example.scenes[0].objects, example.scenes[0].style)] for example in examples]


def _contrasts(
    examples: Sequence[captions.Example], families: Sequence[Sequence[int]], count: int, generator: torch.Generator
) -> tuple[list[str], list[captions.Scene]]:
    """Return `count` captions and a scene for each, no scene twice, up to `NEIGHBOURS` of a family together."""
    chosen: dict[captions.Scene, str] = {}
    while len(chosen) < count:
        family = families[int(torch.randint(len(examples), (1,), generator=generator))]
        for place in torch.randperm(len(family), generator=generator)[:NEIGHBOURS].tolist():
            example = examples[family[place]]
            scene = example.scenes[int(torch.randint(len(example.scenes), (1,), generator=generator))]
            chosen.setdefault(scene, example.caption)
    return list(chosen.values())[:count], list(chosen)[:count]


def retrieval_accuracy(texts: Tensor, images: Tensor) -> float:
    """Return the share of images whose own caption is the nearest of all; both are [count, dim] unit vectors."""
    nearest = (images @ texts.T).argmax(dim=1)
    return float((nearest == torch.arange(len(images))).float().mean())


def held_out_scenes(config: Config, num_concepts: int, count: int = 100) -> list[captions.Scene]:
    """Return `count` different scenes of held-out pairs, the same ones on every call."""
    scenes = captions.single_scenes(config, num_concepts, held_out=True)
    generator = torch.Generator().manual_seed(config.seed + 21)
    return [scenes[index] for index in torch.randperm(len(scenes), generator=generator)[:count].tolist()]


def _report(config: Config, towers: Towers, renders: pictures.Renders) -> None:
    scenes = held_out_scenes(config, len(renders.concepts))
    texts = towers.embed_texts([captions.full_caption(s, renders.concepts, config.styles) for s in scenes])
    images = towers.embed_images(autoencoder.draw(config, renders, scenes))
    log.info(
        "image tower: %.1f %% of %d held-out pictures find their caption; mean cosine %.3f",
        100 * retrieval_accuracy(texts, images), len(scenes), float((texts * images).sum(dim=-1).mean()),
    )  # fmt: skip
