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
# Share of short captions in a batch: about as many as leave the choice of a colour or a size to the noise.
SHARES = {"single": 0.83, "double": 0.06, "short": 0.11}
# What the massive coordinates of BOS are brought down to before the UNet's projections see them.
MASSIVE, CALM = 10.0, 4.0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's inputs, on the device: noise, the latents it belongs to, scaled text states and pooled embeddings."""

    noise: Tensor
    latents: Tensor
    states: Tensor
    pooled: Tensor


class Bank:
    """Latents [scenes, channels, side, side], states [captions, length, width] and who belongs to whom."""

    def __init__(self, config: Config, workspace: Workspace) -> None:
        self.config = config
        self.towers = image_tower.train(config, workspace)
        self.autoencoder = autoencoder.load(config, workspace)
        renders = pictures.render(config, workspace)
        skip = pictures.undrawn(config, renders.concepts)
        examples = captions.training_examples(config, renders.concepts, skip)
        scenes = list(dict.fromkeys(scene for example in examples for scene in example.scenes))
        index = {scene: place for place, scene in enumerate(scenes)}
        self.captions = [example.caption for example in examples]
        self.scenes = [torch.tensor([index[scene] for scene in example.scenes]) for example in examples]
        self._members = {
            "single": [i for i, e in enumerate(examples) if len(e.scenes) == 1 and len(e.scenes[0].objects) == 1],
            "double": [i for i, e in enumerate(examples) if len(e.scenes[0].objects) == 2],
            "short": [i for i, e in enumerate(examples) if len(e.scenes) > 1],
        }
        path = workspace.stage("bank") / "bank.pt"
        if not path.exists():
            ids = image_tower.tokenize(self.towers.tokenizer, self.captions)
            states, pooled = encode_captions(self.towers.text, ids)
            latents = autoencoder.encode(config, self.autoencoder, renders, scenes)
            torch.save({"latents": latents, "states": states.half(), "pooled": pooled}, path)
        saved = torch.load(path, weights_only=True, mmap=True)
        self.latents, self.states, self.pooled = saved["latents"], saved["states"], saved["pooled"]
        self.scale = conditioner(self.states[:512].float())

    def draw(self, generator: torch.Generator, count: int) -> Batch:
        """Return a random batch, the kinds of captions mixed as `SHARES` says."""
        kinds = torch.multinomial(torch.tensor(list(SHARES.values())), count, replacement=True, generator=generator)
        picks = torch.rand(count, generator=generator)
        members = [self._members[list(SHARES)[kind]] for kind in kinds.tolist()]
        chosen = [group[int(pick * len(group))] for group, pick in zip(members, picks.tolist(), strict=True)]
        return self.batch(chosen, torch.randn(count, *self.latents.shape[1:], generator=generator))

    def batch(self, chosen: list[int], noise: Tensor) -> Batch:
        """Return the batch of the given captions and noises."""
        latents = torch.stack([self._coupled(self.scenes[i], one) for i, one in zip(chosen, noise, strict=True)])
        where = torch.tensor(chosen)
        device = self.config.device
        return Batch(
            noise=noise.to(device),
            latents=latents.to(device),
            states=(self.states[where].float() * self.scale).to(device),
            pooled=self.pooled[where].float().to(device),
        )

    def _coupled(self, scenes: Tensor, noise: Tensor) -> Tensor:
        candidates = self.latents[scenes]
        if len(scenes) == 1:
            return candidates[0]
        directions = (candidates - candidates.mean(dim=0)).flatten(1)
        directions = directions / directions.norm(dim=1, keepdim=True)
        return candidates[(directions @ noise.flatten()).argmax()]


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
