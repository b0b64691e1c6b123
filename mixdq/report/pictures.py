"""Pictures inside a page: data URIs, large ones made smaller."""

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mixdq.errors import ArtifactFormatError

LONGEST_SIDE = 384
"""Pixels; a longer picture is embedded smaller, as WebP, so that a page of SDXL pictures stays openable."""


def picture_uri(path: Path) -> str:
    """Return the picture as a data URI: its own bytes where it is small, else 384 pixels on the longer side.

    Raises:
        ArtifactFormatError: the file is no picture, or one that would fill the memory.
    """
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            if max(picture.size) <= LONGEST_SIDE and picture.format == "PNG":
                return data_uri(data, "image/png")
            small = picture.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ArtifactFormatError(f"{path}: not a readable picture ({error}); generate it again") from error
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, format="WEBP", quality=90)
    return data_uri(out.getvalue(), "image/webp")


def data_uri(data: bytes, kind: str) -> str:
    """Return the bytes as a data URI of a media type.

    >>> data_uri(b"<svg/>", "image/svg+xml")
    'data:image/svg+xml;base64,PHN2Zy8+'
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
