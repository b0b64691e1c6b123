import math

import pytest

from mixdq.types.evaluation import Evaluation


def make(**changes: object) -> Evaluation:
    values: dict[str, object] = {"name": "a", "method": "mixdq", "weight_bits": 4.0, "activation_bits": 8.0}
    values |= {
        "weight_bytes": 10,
        "ssim": 0.9,
        "psnr_db": math.inf,
        "sqnr_db": 20.0,
        "clip_score": None,
        "seconds": 1.0,
    }
    return Evaluation(**{**values, **changes})  # type: ignore[arg-type]


def test_identical_pictures_and_an_unmeasured_score_are_fine() -> None:
    assert make().clip_score is None


@pytest.mark.parametrize("key", ["ssim", "psnr_db", "sqnr_db", "clip_score"])
def test_nan_is_refused_by_name(key: str) -> None:
    with pytest.raises(ValueError, match=key):
        make(**{key: math.nan})


def test_metrics_cover_the_same_pictures() -> None:
    with pytest.raises(ValueError, match="different numbers of pictures"):
        make(per_picture={"ssim": (1.0,), "psnr": (1.0, 2.0)})
