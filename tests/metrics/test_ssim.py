import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from mixdq.metrics.ssim import ssim, ssim_map, ssim_per_picture


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 40, 56, generator=generator)
    return x, (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def test_agrees_with_scikit_image_away_from_borders(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = pair
    ours = ssim_map(x, y)
    for index in range(len(x)):
        _, theirs = structural_similarity(
            x[index].double().numpy(),
            y[index].double().numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            use_sample_covariance=False,
            full=True,
        )
        # Borders are mirrored differently there; away from them both sum 121 terms in float64.
        inner = (slice(None), slice(5, -5), slice(5, -5))
        torch.testing.assert_close(ours[index][inner], torch.from_numpy(theirs)[inner], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "window"), [("gaussian", 11), ("gaussian", 7), ("uniform", 7), ("uniform", 33)])
def test_agrees_with_torchmetrics(pair: tuple[torch.Tensor, torch.Tensor], kernel: str, window: int) -> None:
    x, y = pair
    theirs = structural_similarity_index_measure(
        y.double(),
        x.double(),
        gaussian_kernel=kernel == "gaussian",
        sigma=1.5 * window / 11,
        kernel_size=window,
        data_range=1.0,
        reduction="none",
    )
    torch.testing.assert_close(ssim_per_picture(x, y, window=window, kernel=kernel), theirs, rtol=0, atol=1e-12)


def test_identical_pictures_give_one_whatever_they_show() -> None:
    for picture in (torch.rand(2, 3, 24, 24), torch.zeros(1, 3, 24, 24), torch.ones(1, 3, 24, 24)):
        assert ssim(picture, picture) == pytest.approx(1.0, abs=1e-12)


def test_order_of_the_two_does_not_matter(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = pair
    assert ssim(x, y) == pytest.approx(ssim(y, x), abs=1e-14)


def test_more_noise_is_less_alike(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = pair
    assert ssim(x, y) < ssim(x, (x + y) / 2) < 1


def test_many_large_pictures_are_taken_in_parts(
    pair: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = pair
    whole = ssim_per_picture(x, y)
    monkeypatch.setattr("mixdq.metrics.ssim._CHUNK_NUMEL", 1)
    torch.testing.assert_close(ssim_per_picture(x, y), whole, rtol=0, atol=1e-14)


@pytest.mark.parametrize("window", [1, 10, 41])
def test_windows_that_do_not_fit_are_refused(pair: tuple[torch.Tensor, torch.Tensor], window: int) -> None:
    with pytest.raises(ValueError, match="odd number from 3 to the picture's shorter side, 40"):
        ssim(*pair, window=window)


def test_bytes_are_refused() -> None:
    picture = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="divide by 255"):
        ssim(picture, picture)
    with pytest.raises(ValueError, match=r"0\.\.1"):
        ssim(picture + 0.0, picture + 255.0)
