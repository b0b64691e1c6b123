import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from mixdq.errors import ArtifactFormatError
from mixdq.report.pictures import LONGEST_SIDE, picture_uri


def test_small_picture_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 32), "teal").save(path)
    kind, data = picture_uri(path).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == path.read_bytes()


def test_large_picture_shrinks_in_proportion(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (1024, 512), "teal").save(path)
    small = Image.open(io.BytesIO(base64.b64decode(picture_uri(path).split(",")[1])))
    assert small.size == (LONGEST_SIDE, LONGEST_SIDE // 2)


def test_torn_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ArtifactFormatError, match="not a readable picture"):
        picture_uri(path)


def test_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 32)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ArtifactFormatError, match="not a readable picture"):
        picture_uri(path)
