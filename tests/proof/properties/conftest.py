from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# The machine is shared: a slow example is no failure.
for _name, _examples in {"suite": 15, "long": 500}.items():
    settings.register_profile(
        _name,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        max_examples=_examples,
    )
settings.load_profile(os.environ.get("RESUMABLE_TASKS_PROFILE", "suite"))
