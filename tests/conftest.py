"""Settings of every test: property tests are judged by their claims, never by how busy the machine is.

One thread: sums come out in one order in every process, and tiny models gain nothing from more.
"""

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
