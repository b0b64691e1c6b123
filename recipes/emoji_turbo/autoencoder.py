"""Stage 1, the autoencoder: pictures to latents a quarter of their side, and back.

The encoder is set, not learnt: its weights are written so that it returns the first principal components of the
4 x 4 patches, centred and brought to a deviation of at most 1, so the scaling factor is 1. Later stages can start at
once, while the decoder, which sees the neighbouring patches as well, still learns to beat the linear inverse.
"""

import logging
from collections.abc import Sequence

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

from recipes.emoji_turbo import captions, pictures, shapes, training
from recipes.emoji_turbo.config import Config, Workspace

log = logging.getLogger(__name__)

PATCH = 4
# The decoder sees slightly noisy latents, as a denoiser will hand it.
LATENT_NOISE = 0.08
ENCODE_BATCH = 64
PATCH_PICTURES = 1500
# Edges make the late components heavy-tailed, and AutoencoderTiny's decoder squashes what it reads to (-3, 3): all
# but this share of a component's values are kept within `REACH`.
TAIL_SHARE, REACH = 0.004, 2.5


def train(config: Config, workspace: Workspace) -> AutoencoderTiny:
    """Return the autoencoder with its decoder trained; writes sheets of originals above reconstructions."""
    folder = workspace.stage("autoencoder")
    renders = pictures.render(config, workspace)
    scenes = training_scenes(config, renders)
    model = with_encoder(config, workspace)

    def step(_: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = torch.randint(len(scenes), (config.autoencoder.batch,), generator=generator).tolist()
        batch = draw(config, renders, [scenes[index] for index in chosen]).to(config.device)
        with torch.no_grad():
            latents = model.encoder(batch)
            noise = torch.randn(latents.shape, generator=generator).to(config.device)
        decoded = model.decoder(latents + LATENT_NOISE * noise)
        squared = functional.mse_loss(decoded, batch)
        loss = functional.l1_loss(decoded, batch) + 2 * squared + _edge_loss(decoded, batch)
        return loss, {"psnr_db": float(psnr(squared.detach()))}

    training.train(model.decoder, config.autoencoder, folder, step, seed=config.seed)
    unseen = captions.single_scenes(config, len(renders.concepts), held_out=True)
    for name, shown in (("training", scenes[:: len(scenes) // 256]), ("held-out", unseen[::2])):
        batch = draw(config, renders, shown).to(config.device)
        with torch.no_grad():
            decoded = model.decode(model.encode(batch).latents).sample.clamp(-1, 1)
        each = (decoded - batch).square().mean(dim=(1, 2, 3))
        log.info("autoencoder: PSNR %.2f dB on %d %s pictures", float(psnr(each).mean()), len(batch), name)
        pairs = torch.stack([batch[:: len(batch) // 16][:16], decoded[:: len(batch) // 16][:16]]).flatten(0, 1)
        pictures.sheet(pairs, 16, folder / f"sheet_{name}.png")
    return model.eval()


def with_encoder(config: Config, workspace: Workspace) -> AutoencoderTiny:
    """Return the autoencoder with its final encoder and an untrained decoder: enough to make latents."""
    torch.manual_seed(config.seed)
    model = shapes.autoencoder(config)
    path = workspace.stage("autoencoder") / "components.pt"
    if not path.exists():
        renders = pictures.render(config, workspace)
        scenes = training_scenes(config, renders)
        some = scenes[:: max(1, len(scenes) // PATCH_PICTURES)]
        torch.save(principal_components((draw(config, renders, some) + 1) / 2, config.latent_channels), path)
    set_encoder(model, **torch.load(path, weights_only=True))
    model.encoder.requires_grad_(False)
    return model.to(config.device, memory_format=torch.channels_last)


def load(config: Config, workspace: Workspace) -> AutoencoderTiny:
    """Return the autoencoder with its decoder as far as it has come, so that later stages need not wait for it."""
    model = with_encoder(config, workspace)
    path = workspace.stage("autoencoder") / "checkpoint.pt"
    if path.exists():
        averages = torch.load(path, weights_only=True)["averages"]
        for parameter, value in zip(model.decoder.parameters(), averages, strict=True):
            parameter.data.copy_(value)
    return model.eval().requires_grad_(False)


def training_scenes(config: Config, renders: pictures.Renders) -> list[captions.Scene]:
    """Return every scene but the held-out ones."""
    count = len(renders.concepts)
    return captions.single_scenes(config, count, held_out=False) + captions.double_scenes(config, count)


def principal_components(batch: Tensor, count: int) -> dict[str, Tensor]:
    """Return of the patches of pictures in [0, 1]: "directions" [count, 3, 4, 4], "means" and "units" [count].

    A component's unit is its standard deviation, or more where its tail would leave the decoder's range.
    """
    patches = functional.unfold(batch, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1).double()
    centred = patches - patches.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    directions = vectors[:, -count:].flip(-1).T
    tails = (centred @ directions.T).abs().sort(dim=0).values[int((1 - TAIL_SHARE) * len(centred))]
    units = torch.maximum(values[-count:].flip(-1).sqrt(), tails / REACH)
    kept = float(values[-count:].sum() / values.sum())
    log.info("autoencoder: %d components keep %.2f %% of the variance", count, 100 * kept)
    return {
        "directions": directions.reshape(count, 3, PATCH, PATCH).float(),
        "means": (directions @ patches.mean(dim=0)).float(),
        "units": units.float(),
    }


@torch.no_grad()
def set_encoder(model: AutoencoderTiny, directions: Tensor, means: Tensor, units: Tensor) -> None:
    """Write the weights with which the encoder returns (directions . patch - means) / units, exactly.

    Pixels in [0, 1] pass the rectifiers unchanged: the first two convolutions gather the 2 x 2 pixels of a quarter
    patch in 12 channels, the third takes the components of the four quarters, once with each sign, so that what one
    rectifier drops the other keeps, and the last one subtracts. Residual branches are silenced.
    """
    for parameter in model.encoder.parameters():
        parameter.zero_()
    convolutions = [layer for layer in model.encoder.layers if isinstance(layer, nn.Conv2d)]
    entry, halve, quarter, exit_ = convolutions
    count = len(means)
    # A stride-2, padded 3 x 3 kernel has its block's two rows (columns) at taps 1 and 2.
    for colour in range(3):
        entry.weight[colour, colour, 1, 1] = 1
        for row in range(2):
            for column in range(2):
                channel = 4 * colour + 2 * row + column
                halve.weight[channel, colour, 1 + row, 1 + column] = 1
                part = directions[:, colour, row::2, column::2]
                quarter.weight[:count, channel, 1:, 1:] = part
                quarter.weight[count : 2 * count, channel, 1:, 1:] = -part
    for component in range(count):
        exit_.weight[component, component, 1, 1] = 1 / units[component]
        exit_.weight[component, count + component, 1, 1] = -1 / units[component]
    exit_.bias.copy_(-means / units)


def draw(config: Config, renders: pictures.Renders, scenes: Sequence[captions.Scene]) -> Tensor:
    """Return the pictures of the scenes, [count, 3, side, side] in [-1, 1], channels last."""
    drawn = [
        pictures.compose(renders, s.objects, s.style, config.colours[s.colour], s.size, config.image_size)
        for s in scenes
    ]
    return pictures.to_signed(torch.stack(drawn)).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def encode(
    config: Config, model: AutoencoderTiny, renders: pictures.Renders, scenes: Sequence[captions.Scene]
) -> Tensor:
    """Return the latents of the scenes, [count, channels, side / 4, side / 4]."""
    batches = []
    for start in range(0, len(scenes), ENCODE_BATCH):
        batch = draw(config, renders, scenes[start : start + ENCODE_BATCH]).to(config.device)
        batches.append(model.encode(batch).latents.float().cpu())
    return torch.cat(batches)


def psnr(squared_error: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of mean squared errors on the range [-1, 1]."""
    return 10 * torch.log10(4 / squared_error)


def _edge_loss(candidate: Tensor, reference: Tensor) -> Tensor:
    """Return the mean absolute error of both finite differences: a blurred edge costs more than a shifted tone."""
    error = candidate - reference
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
