import pytest
import torch

from mixdq.evaluation.compare import compare
from mixdq.metrics.base import METRICS


def test_every_metric_has_a_value_for_each_picture() -> None:
    x, y = torch.rand(3, 3, 16, 16), torch.rand(3, 3, 16, 16)
    found = compare(x, y, ["a", "b", "c"], list(METRICS.values()))
    assert list(found.means) == list(METRICS)
    for name, metric in METRICS.items():
        assert found[name] == pytest.approx(metric(x, y))
        assert len(found.per_picture[name]) == 3


def test_prompts_and_pictures_must_match() -> None:
    x = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match="1 prompts, 2 reference and 2 candidate"):
        compare(x, x, ["a"], list(METRICS.values()))
