"""Settings of every test: property tests are judged by their claims, never by how busy the machine is.

One thread: sums come out in one order in every process, and tiny models gain nothing from more. Of several processes
none waits at the end for another that began with the longest file last.
"""

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

LONGEST = ("test_interpreted.py", "test_ray_kills.py", "test_ray.py", "test_interruption.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; the others stay in their order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
