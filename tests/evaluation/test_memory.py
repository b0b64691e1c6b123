from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mixdq.errors import ArtifactFormatError
from mixdq.evaluation.memory import peak_resident_bytes, reset_peak_resident, resident_bytes, weight_bytes_on_disk


def test_peak_rises_with_what_is_held_and_stays() -> None:
    reset_peak_resident()
    before = peak_resident_bytes()
    held = torch.ones(2**24)
    after = peak_resident_bytes()
    assert after >= before + held.nbytes // 2
    del held
    assert peak_resident_bytes() >= after - 2**20


def test_peak_can_be_forgotten_where_the_system_allows() -> None:
    held = torch.ones(2**25)
    high = peak_resident_bytes()
    del held
    if not reset_peak_resident():
        pytest.skip("this system cannot reset the peak of resident memory")
    assert peak_resident_bytes() < high


def test_what_is_held_now_follows_what_is_held() -> None:
    before = resident_bytes()
    if before is None:
        pytest.skip("this system does not say what is resident")
    held = torch.ones(2**25)
    during = resident_bytes()
    assert during is not None
    assert before + held.nbytes // 2 < during <= peak_resident_bytes()
    del held
    after = resident_bytes()
    assert after is not None
    assert after < during - 2**26


def test_every_weight_file_counts_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for name in ("a.safetensors", "unet/b.safetensors"):
        save_file({"x": torch.zeros(100)}, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    total = sum((tmp_path / name).stat().st_size for name in ("a.safetensors", "unet/b.safetensors"))
    assert weight_bytes_on_disk(tmp_path) == total > 800


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactFormatError, match="no safetensors files"):
        weight_bytes_on_disk(tmp_path)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(ArtifactFormatError, match="empty weight files"):
        weight_bytes_on_disk(tmp_path)
