import pytest
import torch
from PIL import Image

from mixdq.errors import ArtifactFormatError
from mixdq.workflow.pictures import png_bytes, read_pictures, write_pictures


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_pictures_come_back_within_half_a_step_of_eight_bits(tmp_path, pictures) -> None:
    paths = write_pictures(tmp_path / "new", pictures)
    assert [path.name for path in paths] == ["000.png", "001.png", "002.png"]
    # Half a step, and float32 rounding of the division by 255.
    assert (read_pictures(paths) - pictures).abs().max() <= 0.5 / 255 + 1e-6


def test_what_was_read_is_written_and_read_again_unchanged(tmp_path, pictures) -> None:
    once = read_pictures(write_pictures(tmp_path, pictures))
    assert torch.equal(read_pictures(write_pictures(tmp_path, once)), once)


def test_values_beyond_the_range_are_clipped(tmp_path) -> None:
    wild = torch.tensor([-1.0, 2.0]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert read_pictures(write_pictures(tmp_path, wild)).unique().tolist() == [0.0, 1.0]


def test_each_picture_is_counted(tmp_path, pictures) -> None:
    counts: list[int] = []
    write_pictures(tmp_path, pictures, counts.append)
    assert counts == [1, 2, 3]


@pytest.mark.parametrize("length", [0, 10, 40, -40])
def test_truncated_picture_is_refused_by_name(tmp_path, pictures, length) -> None:
    path = tmp_path / "000.png"
    path.write_bytes(png_bytes(pictures[0])[:length])
    with pytest.raises(ArtifactFormatError, match=r"000\.png: not a readable picture"):
        read_pictures([path])


def test_missing_picture_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(ArtifactFormatError, match=r"007\.png"):
        read_pictures([tmp_path / "007.png"])


def test_error_of_the_system_is_not_taken_for_damage(tmp_path) -> None:
    # A folder in place of the file: the disk's own complaint.
    with pytest.raises(IsADirectoryError):
        read_pictures([tmp_path])


def test_pictures_of_two_sizes_are_refused(tmp_path, pictures) -> None:
    paths = write_pictures(tmp_path, pictures)
    Image.new("RGB", (4, 4)).save(paths[1])
    with pytest.raises(ArtifactFormatError, match="several sizes"):
        read_pictures(paths)
