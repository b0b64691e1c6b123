import pytest
import torch

from mixdq.metrics.base import METRICS


@pytest.mark.parametrize("name", METRICS)
def test_metric_is_the_mean_of_its_pictures(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == name
    x, y = torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16)
    values = metric.per_picture(x, y)
    assert values.shape == (3,)
    assert values.dtype == torch.float64
    assert metric(x, y) == pytest.approx(float(values.mean()))


@pytest.mark.parametrize("name", METRICS)
def test_better_is_in_the_stated_direction(name: str) -> None:
    x, y = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    near, far = METRICS[name](x, 0.9 * x + 0.1 * y), METRICS[name](x, y)
    assert (near > far) == METRICS[name].higher_is_better
