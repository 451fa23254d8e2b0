"""What a run waits for, where batches are Prefect's task runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumable_tasks import resumable_task
from tests.engine.test_bound_by import JOBS, _told, imported
from tests.prefect.test_seen import in_flow

__all__ = ["imported"]

pytestmark = [
    pytest.mark.usefixtures("in_prefect"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.mark.timing
@pytest.mark.usefixtures("imported")
def test_six_jobs_in_a_flow_say_what_they_wait_for(place: Path) -> None:
    _told.clear()

    def all_of_them() -> dict[str, str]:
        found = {}
        for name, (_, handler, items, options) in JOBS.items():
            wanted = {"name": "job", "key": "id", "batch_size": 1, "concurrency": 2, **options}
            job = resumable_task(handler, **wanted)
            _told.clear()
            bound = job.run(items(), checkpoint=place / name).bound_by
            assert bound is not None
            found[name] = bound.what
            print(name, bound)
        return found

    assert in_flow(all_of_them, []) == {name: what for name, (what, *_) in JOBS.items()}
