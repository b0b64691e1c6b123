"""Everything the denoiser trains on, computed once: latents of all scenes, text states of all captions.

A short caption leaves several scenes open. Which one a noise belongs to is decided here, by the noise itself: the
scene it resembles most. Over all noises every scene is about as likely as before, yet a single noise and a caption
now mean one picture, which is what a model of one step can learn (a coupling as in optimal-transport flow matching).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from recipes.emoji_turbo import autoencoder, captions, image_tower, pictures
from recipes.emoji_turbo.config import Config, Workspace

ENCODE_BATCH = 128
# Shares of a batch: one object large or small, two objects, captions that leave the colour or the size to the noise.
SHARES = {"large": 0.56, "small": 0.30, "double": 0.04, "short": 0.10}
# What the massive coordinates of BOS are brought down to before the UNet's projections see them.
MASSIVE, CALM = 10.0, 4.0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the UNet is given, on the device: noise, scaled text states and pooled embeddings."""

    noise: Tensor
    states: Tensor
    pooled: Tensor

    def part(self, where: slice) -> "Batch":
        """Return some of the rows."""
        return Batch(noise=self.noise[where], states=self.states[where], pooled=self.pooled[where])


class Bank:
    """The training set: for scenes their `latents` and `pictures` (bytes), for captions the text tower's output."""

    def __init__(self, config: Config, workspace: Workspace) -> None:
        self.config = config
        self.towers = image_tower.train(config, workspace)
        self.autoencoder = autoencoder.load(config, workspace)
        renders = pictures.render(config, workspace)
        examples = captions.training_examples(config, renders.concepts)
        scenes = list(dict.fromkeys(scene for example in examples for scene in example.scenes))
        index = {scene: place for place, scene in enumerate(scenes)}
        self.captions = [example.caption for example in examples]
        self._scenes = [torch.tensor([index[scene] for scene in example.scenes]) for example in examples]
        kinds = [_kind(example) for example in examples]
        self._members = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in SHARES}
        path = workspace.stage("bank") / "bank.pt"
        if not path.exists():
            ids = image_tower.tokenize(self.towers.tokenizer, self.captions)
            states, pooled = encode_captions(self.towers.text, ids)
            latents = autoencoder.encode(config, self.autoencoder, renders, scenes)
            torch.save({"latents": latents, "states": states.half(), "pooled": pooled}, path)
        saved = torch.load(path, weights_only=True, mmap=True)
        self.latents, self._states, self._pooled = saved["latents"], saved["states"], saved["pooled"]
        self.scale = conditioner(self._states[:512].float())
        drawn = [
            pictures.compose(renders, s.objects, s.style, config.colours[s.colour], s.size, config.image_size)
            for s in scenes
        ]
        self.pictures = torch.stack(drawn)

    def draw(self, generator: torch.Generator, count: int) -> tuple[Batch, Tensor]:
        """Return a random batch and the scene each row means, the kinds of captions mixed as `SHARES` says."""
        kinds = torch.multinomial(torch.tensor(list(SHARES.values())), count, replacement=True, generator=generator)
        picks = torch.rand(count, generator=generator)
        members = [self._members[list(SHARES)[kind]] for kind in kinds.tolist()]
        chosen = [group[int(pick * len(group))] for group, pick in zip(members, picks.tolist(), strict=True)]
        noise = torch.randn(count, *self.latents.shape[1:], generator=generator)
        where = torch.tensor(chosen)
        scenes = torch.stack([self._coupled(self._scenes[i], one) for i, one in zip(chosen, noise, strict=True)])
        return self.conditioned(noise, self._states[where].float(), self._pooled[where].float()), scenes

    def conditioned(self, noise: Tensor, states: Tensor, pooled: Tensor) -> Batch:
        """Return the batch of the given noises and outputs of the text tower."""
        device = self.config.device
        return Batch(noise=noise.to(device), states=(states * self.scale).to(device), pooled=pooled.to(device))

    def _coupled(self, scenes: Tensor, noise: Tensor) -> Tensor:
        """Return the one of the scenes, by index, that the noise resembles most."""
        if len(scenes) == 1:
            return scenes[0]
        candidates = self.latents[scenes]
        directions = (candidates - candidates.mean(dim=0)).flatten(1)
        directions = directions / directions.norm(dim=1, keepdim=True)
        return scenes[(directions @ noise.flatten()).argmax()]


def _kind(example: captions.Example) -> str:
    if len(example.scenes) > 1:
        return "short"
    return "double" if len(example.scenes[0].objects) == 2 else example.scenes[0].size


@torch.no_grad()
def encode_captions(text: CLIPTextModelWithProjection, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return what SDXL's pipeline hands to the UNet: penultimate states and pooled, projected embeddings."""
    states, pooled = [], []
    for part in ids.to(text.device).split(ENCODE_BATCH):
        output = text(input_ids=part, output_hidden_states=True)
        states.append(output.hidden_states[-2].cpu())
        pooled.append(output.text_embeds.cpu())
    return torch.cat(states), torch.cat(pooled)


def conditioner(states: Tensor) -> Tensor:
    """Return [width] factors that bring every coordinate of the text states to a size of about one.

    The massive coordinates of BOS would make the UNet's key and value projections hopeless to train. Training sees
    states * factors; `fold` moves the factors into those projections, where they change nothing but rounding.
    """
    bos = states[0, 0].abs()
    content = states[:, 1:].flatten(0, 1)
    spread = content.square().mean(dim=0).sqrt()
    quiet = 1 / (spread + 0.2 * spread.median())
    return torch.where(bos > MASSIVE, torch.minimum(CALM / bos.clamp(min=MASSIVE), quiet), quiet)
