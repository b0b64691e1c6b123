import sys
from pathlib import Path

import pytest
import torch

from mixdq.runtime.kernels import openmp

LIBRARY = "7f0000000000-7f0000001000 r-xp 00000000 fe:00 1  "


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is loaded")
def test_torchs_own_runtime_is_found() -> None:
    if "OpenMP" not in torch.__config__.parallel_info().split("ATen parallel backend:")[1]:
        pytest.skip("torch has no OpenMP")
    assert "omp" in openmp.runtimes()[0].name
    assert openmp.options() == ["-Wl,--as-needed", str(openmp.runtimes()[0])]


def test_torchs_own_comes_first_and_only_runtimes_count(tmp_path, monkeypatch) -> None:
    site = Path(torch.__file__).parent.parent
    inside = [site / "torch.libs" / "libgomp-a34b3233.so.1", site / "torch" / "lib" / "libgomp.so.1"]
    outside = [Path("/a b/libgomp.so.1.0.0"), Path("/usr/lib/libiomp5.so"), Path("/usr/lib/libomp.so.5")]
    others = [Path("/usr/lib/libcomplex.so"), Path("/usr/lib/libgompertz.so"), Path("/usr/lib/libomptarget.so.14")]
    maps = tmp_path / "maps"
    maps.write_text("".join(f"{LIBRARY}{path}\n" for path in [*others, *outside, *inside]) + LIBRARY.strip() + "\n")
    monkeypatch.setattr(openmp, "MAPS", maps)
    found = openmp.runtimes()
    assert set(found[:2]) == set(inside)
    assert set(found) == {*inside, *outside}


def test_where_nobody_says_nothing_is_bound(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(openmp, "MAPS", tmp_path / "no-such-file")
    assert openmp.runtimes() == ()
    assert openmp.options() == []
