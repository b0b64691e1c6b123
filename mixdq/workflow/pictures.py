"""Pictures of a run: PNG files that people look at and that the numbers are computed from."""

import errno
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mixdq.errors import ArtifactFormatError
from mixdq.store.artifact import atomic_write
from mixdq.workflow.reporting import picture_path


def write_pictures(folder: Path, pictures: Tensor, count_done: Callable[[int], None] = lambda _: None) -> list[Path]:
    """Write [N, 3, H, W] in 0..1 as PNG files, each whole or not at all, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, picture in enumerate(pictures):
        path = picture_path(folder, index)
        atomic_write(path, png_bytes(picture))
        paths.append(path)
        count_done(index + 1)
    return paths


def png_bytes(picture: Tensor) -> bytes:
    """Return one picture [3, H, W] in 0..1 as an 8-bit PNG."""
    pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def read_pictures(paths: Sequence[Path]) -> Tensor:
    """Return the pictures of PNG files as float32 [N, 3, H, W] in 0..1.

    Raises:
        ArtifactFormatError: a file is missing, is no picture, or differs in size from the first.
    """
    arrays = []
    for path in paths:
        try:
            with Image.open(path) as image:
                arrays.append(np.asarray(image.convert("RGB")))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            # A truncated picture is an OSError of Pillow's own, without a number; the system's have one.
            if getattr(error, "errno", None) not in (None, errno.ENOENT):
                raise
            raise ArtifactFormatError(
                f"{path}: not a readable picture ({error}); delete its folder, run again"
            ) from error
    if any(array.shape != arrays[0].shape for array in arrays):
        raise ArtifactFormatError(f"{paths[0].parent}: pictures of several sizes; delete the folder and run again")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
