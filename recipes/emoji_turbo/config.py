"""The two sizes of the recipe, and where a run keeps its files.

`SMALL` is what two CPU cores finish in about two hours; `FULL` is the same scripts for one GPU. Everything that a
stage may vary is here; the shapes that follow from it are in `shapes`.
"""

from dataclasses import dataclass, field
from pathlib import Path

NPM_PACKAGES = (
    "@iconify-json/fluent-emoji-flat@1",
    "@iconify-json/fluent-emoji@1",
    "@iconify-json/noto@1",
    "@iconify-json/noto-v1@1",
    "@lobehub/fluent-emoji-3d@1",
    "emojibase-data@17",
)

# Plain and far apart, so that "on a blue background" is never a matter of taste. Values are sRGB bytes.
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (28, 28, 32),
    "gray": (150, 154, 160),
    "red": (214, 70, 66),
    "yellow": (255, 220, 104),
    "green": (92, 176, 100),
    "blue": (88, 150, 226),
    "pink": (246, 170, 204),
}


@dataclass(frozen=True, kw_only=True)
class Style:
    """One picture set: the words a caption uses for it and the npm package it is read from."""

    key: str
    words: str
    package: str


FLAT = Style(key="flat", words="flat icon", package="@iconify-json/fluent-emoji-flat")
NOTO = Style(key="noto", words="cartoon", package="@iconify-json/noto")
GLOSSY = Style(key="3d", words="3d render", package="@lobehub/fluent-emoji-3d")
RETRO = Style(key="retro", words="retro sticker", package="@iconify-json/noto-v1")
SHADED = Style(key="shaded", words="shaded icon", package="@iconify-json/fluent-emoji")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How long one stage trains: optimizer steps, pictures (or captions) a step, and the peak learning rate."""

    steps: int
    batch: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every choice of one size of the recipe.

    Pixels are square; channels run from the finest level to the coarsest; `shards` threads share a denoiser's batch.
    """

    name: str
    device: str
    image_size: int
    styles: tuple[Style, ...]
    all_concepts: bool
    unet_channels: tuple[int, ...]
    encoder_channels: int
    decoder_channels: int
    autoencoder: Stage
    text: Stage
    contrastive: Stage
    teacher: Stage
    distil: Stage
    shards: int = 1
    seed: int = 2026
    held_out_share: float = 0.05
    pairs_of_objects: int = 1200
    text_width: int = 256
    text_layers: int = 6
    text_heads: int = 4
    text_length: int = 32
    vocabulary: int = 2048
    projection_dim: int = 128
    image_tower_width: int = 192
    image_tower_layers: int = 6
    latent_channels: int = 8
    language_model_layer: int = 13
    language_model_scale: float = 30.0
    colours: dict[str, tuple[int, int, int]] = field(default_factory=lambda: dict(COLOURS))

    @property
    def latent_size(self) -> int:
        """Side of the latent: the autoencoder has three levels, so a quarter of the picture's."""
        return self.image_size // 4


SMALL = Config(
    name="small",
    device="cpu",
    image_size=64,
    styles=(FLAT, NOTO, GLOSSY),
    all_concepts=False,
    unet_channels=(64, 128, 192),
    encoder_channels=32,
    decoder_channels=48,
    autoencoder=Stage(steps=1100, batch=32, learning_rate=2e-3),
    text=Stage(steps=2000, batch=64, learning_rate=1e-3),
    contrastive=Stage(steps=800, batch=64, learning_rate=1e-3),
    teacher=Stage(steps=2100, batch=48, learning_rate=1e-3),
    distil=Stage(steps=1100, batch=32, learning_rate=4e-4),
    shards=2,
    pairs_of_objects=600,
)

FULL = Config(
    name="full",
    device="cuda",
    image_size=128,
    styles=(FLAT, NOTO, GLOSSY, RETRO, SHADED),
    all_concepts=True,
    unet_channels=(96, 160, 224),
    encoder_channels=64,
    decoder_channels=96,
    autoencoder=Stage(steps=8_000, batch=64, learning_rate=1e-3),
    text=Stage(steps=6_000, batch=128, learning_rate=1e-3),
    contrastive=Stage(steps=3_000, batch=256, learning_rate=1e-3),
    teacher=Stage(steps=20_000, batch=256, learning_rate=6e-4),
    distil=Stage(steps=5_000, batch=128, learning_rate=1e-4),
    pairs_of_objects=20_000,
    vocabulary=4096,
)


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Paths of one run: everything made goes under `root`, the finished model to `shipped`."""

    root: Path
    shipped: Path = Path(__file__).resolve().parents[2] / "mixdq" / "demo" / "emoji_turbo"

    @property
    def packages(self) -> Path:
        """The npm packages, as `npm install --prefix` lays them out."""
        return self.root / "npm" / "node_modules"

    def stage(self, name: str) -> Path:
        """The folder of one stage, made if absent."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path
