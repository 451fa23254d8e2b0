"""The time of a run is that of its schedule, whenever it runs."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import pytest

from resumable_tasks import scheduled_time


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("late", [0, 5, 86_400])
def test_the_time_of_a_flow_run_is_its_schedules(late: int) -> None:
    from prefect.client.schemas.objects import FlowRun
    from prefect.context import FlowRunContext

    at = datetime.datetime(2026, 11, 23, 8, 15, 0, 250_000, tzinfo=datetime.UTC)
    times: Any = {
        "expected_start_time": at,
        "start_time": at + datetime.timedelta(seconds=late),
    }
    found = FlowRun(flow_id=uuid.uuid4(), **times)
    with FlowRunContext.model_construct(flow_run=found):
        assert scheduled_time() == at.replace(microsecond=0)
