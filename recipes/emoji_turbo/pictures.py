"""Pictures: fetch the packages, render every (concept, style) once, compose them on plain backgrounds.

A render is premultiplied RGBA at the sizes a scene can ask for; a scene is one or two objects, a style, a colour and
a size (`captions.Scene`). Nothing here knows about captions.
"""

import io
import json
import logging
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
import torch
from PIL import Image
from torch import Tensor

from recipes.emoji_turbo.config import NPM_PACKAGES, Config, Style, Workspace

log = logging.getLogger(__name__)

# Shares of the picture's side, in sixteenths: one large object, one small object, one of two side by side.
SIXTEENTHS = {"large": 14, "small": 9, "pair": 7}
SUPERSAMPLED = 256
# emojibase groups without people (1), skin tones (2), symbols (8) and flags (9).
GROUPS = (0, 3, 4, 5, 6, 7)
CONCEPTS_FILE = Path(__file__).with_name("concepts.txt")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A thing to draw: its name in captions, its label in emojibase and its code points in hexadecimal."""

    name: str
    label: str
    hexcode: str


@dataclass(frozen=True, kw_only=True)
class Renders:
    """All objects, [concepts, styles, 4, side, side] a size, premultiplied RGBA bytes."""

    concepts: tuple[str, ...]
    styles: tuple[Style, ...]
    pixels: dict[str, Tensor]


def fetch(workspace: Workspace) -> None:
    """Install the npm packages into the workspace unless they are there."""
    if (workspace.packages / "emojibase-data").exists():
        return
    command = ["npm", "install", "--prefix", str(workspace.packages.parent), "--no-audit", "--no-fund", *NPM_PACKAGES]
    subprocess.run(command, check=True)


def concepts(config: Config, workspace: Workspace) -> list[Concept]:
    """Return the concepts of this size: those of `concepts.txt`, or every one that all groups of things have."""
    entries = json.loads((workspace.packages / "emojibase-data/en/compact.json").read_text(encoding="utf-8"))
    by_label = {entry["label"]: entry["hexcode"].lower() for entry in entries if entry.get("group") in GROUPS}
    if config.all_concepts:
        return [Concept(name=label.lower(), label=label, hexcode=code) for label, code in by_label.items()]
    chosen = []
    for line in _concept_lines():
        label, _, name = (part.strip() for part in line.partition("="))
        chosen.append(Concept(name=(name or label).lower(), label=label, hexcode=by_label[label]))
    return chosen


def phrases(workspace: Workspace) -> list[str]:
    """Return the name and keywords of every thing in emojibase, drawn or not: words for the text encoder to know."""
    entries = json.loads((workspace.packages / "emojibase-data/en/compact.json").read_text(encoding="utf-8"))
    things = [entry for entry in entries if entry.get("group") in GROUPS]
    words = {text.lower() for entry in things for text in (entry["label"], *entry.get("tags", ()))}
    return sorted(word for word in words if word.isascii())


def render(config: Config, workspace: Workspace) -> Renders:
    """Return the renders, made on the first call and read from the workspace afterwards.

    A concept that some style lacks is left out of all of them, and named in the log.
    """
    path = workspace.stage("pictures") / "renders.pt"
    if not path.exists():
        fetch(workspace)
        sources = [_Source(style, workspace) for style in config.styles]
        names, rows = [], {size: [] for size in SIXTEENTHS}
        for concept in concepts(config, workspace):
            masters = [source.master(concept) for source in sources]
            drawn = [master for master in masters if master is not None]
            if len(drawn) < len(masters):
                log.info("left out %s: not drawn in every style", concept.name)
                continue
            names.append(concept.name)
            for size, share in SIXTEENTHS.items():
                side = config.image_size * share // 16
                rows[size].append(torch.stack([_shrink(master, side) for master in drawn]))
        torch.save({"names": names, "pixels": {size: torch.stack(stack) for size, stack in rows.items()}}, path)
    saved = torch.load(path, weights_only=True)
    return Renders(concepts=tuple(saved["names"]), styles=config.styles, pixels=saved["pixels"])


def compose(
    renders: Renders, objects: Sequence[int], style: int, colour: tuple[int, int, int], size: str, side: int
) -> Tensor:
    """Return one picture, [3, side, side] bytes: the objects in the middle of a plain background.

    `size` is "large" or "small" and counts only for a single object; two objects share the width.
    """
    canvas = torch.tensor(colour, dtype=torch.float32).view(3, 1, 1).repeat(1, side, side)
    sprites = renders.pixels[size if len(objects) == 1 else "pair"]
    sprite_side = sprites.shape[-1]
    top = (side - sprite_side) // 2
    free = side - len(objects) * sprite_side
    for place, concept in enumerate(objects):
        left = place * sprite_side + free * (place + 1) // (len(objects) + 1)
        sprite = sprites[concept, style].float()
        window = canvas[:, top : top + sprite_side, left : left + sprite_side]
        # premultiplied "over": out = colour * alpha + background * (1 - alpha)
        window.copy_(sprite[:3] + window * (1 - sprite[3:] / 255))
    return canvas.round().clamp(0, 255).to(torch.uint8)


def to_signed(pictures: Tensor) -> Tensor:
    """Return bytes as floats in [-1, 1], the range of every model here."""
    return pictures.float() / 127.5 - 1


def sheet(pictures: Tensor, columns: int, path: Path, *, zoom: int = 2) -> None:
    """Write a grid of pictures ([count, 3, side, side], floats in [-1, 1]) as one PNG, row by row."""
    pixels = ((pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    count, _, side, _ = pixels.shape
    rows, gap = -(-count // columns), 2
    grid = Image.new("RGB", (columns * (side + gap) - gap, rows * (side + gap) - gap), "white")
    for index, picture in enumerate(pixels):
        at = (index % columns * (side + gap), index // columns * (side + gap))
        grid.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), at)
    grid.resize((grid.width * zoom, grid.height * zoom), Image.Resampling.NEAREST).save(path, optimize=True)


def _concept_lines() -> list[str]:
    lines = CONCEPTS_FILE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


class _Source:
    """One style's package: SVG bodies of an iconify set, or a folder of ready pictures."""

    def __init__(self, style: Style, workspace: Workspace) -> None:
        folder = workspace.packages / style.package
        self._assets = folder / "assets"
        self._icons: dict[str, dict[str, object]] = {}
        if (folder / "icons.json").exists():
            icon_set = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
            chars = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
            aliases = {name: alias["parent"] for name, alias in icon_set.get("aliases", {}).items()}
            size = {"width": icon_set.get("width", 32), "height": icon_set.get("height", 32)}
            self._icons = {name: size | icon for name, icon in icon_set["icons"].items()}
            self._names = {code: aliases.get(name, name) for code, name in chars.items()}

    def master(self, concept: Concept) -> Image.Image | None:
        """Return the concept at `SUPERSAMPLED` pixels a side, or None where this set does not draw it."""
        code = concept.hexcode.lower()
        bare = code.replace("-fe0f", "")
        if not self._icons:
            paths = [self._assets / f"{name}.webp" for name in (code, bare, f"{bare}-fe0f")]
            found = next((path for path in paths if path.exists()), None)
            return _squared(Image.open(found).convert("RGBA")) if found else None
        slug = concept.label.lower().replace(" ", "-")
        name = self._names.get(code) or self._names.get(bare) or slug
        if name not in self._icons:
            return None
        icon = self._icons[name]
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {icon["width"]} {icon["height"]}">{icon["body"]}</svg>'
        )
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SUPERSAMPLED, height=SUPERSAMPLED))
        return _squared(Image.open(io.BytesIO(png)).convert("RGBA"))


def _squared(picture: Image.Image) -> Image.Image:
    """Crop to what is drawn, then centre it in a square: every object fills its frame alike in every style."""
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    if box is None:
        raise ValueError("a picture without a single visible pixel")
    cropped = picture.crop(box)
    side = max(cropped.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(cropped, ((side - cropped.width) // 2, (side - cropped.height) // 2))
    return square


def _shrink(master: Image.Image, side: int) -> Tensor:
    """Return [4, side, side] premultiplied bytes; filtering after premultiplying keeps edges free of halos."""
    pixels = np.asarray(master, dtype=np.float32)
    pixels = np.concatenate([pixels[..., :3] * pixels[..., 3:] / 255, pixels[..., 3:]], axis=-1)
    channels = [
        Image.fromarray(pixels[..., index]).resize((side, side), Image.Resampling.LANCZOS) for index in range(4)
    ]
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels])).round().clamp(0, 255).byte()
