"""A cancel in Prefect of a flow run that nobody but this script has started."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import Abort

from resumable_tasks import resumable_task
from resumable_tasks.prefect import cancels
from tests.prefect.api import Api, until

pytestmark = [
    pytest.mark.usefixtures("in_prefect"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ITEMS = [{"id": i} for i in range(2_000)]


@pytest.mark.parametrize("kind", ["plain", pytest.param("async", marks=pytest.mark.long)])
def test_a_script_that_is_cancelled_in_the_ui_stops_in_order(
    kind: str, place: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow
    from prefect.runtime import flow_run

    monkeypatch.setattr(cancels, "EVERY_SECONDS", 0.5)
    ids: list[str] = []
    handled: list[int] = []

    def slow(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        time.sleep(0.2)
        handled.extend(item["id"] for item in items)
        return items

    task = resumable_task(slow, name="job", key="id", batch_size=2, concurrency=2)

    @flow
    def plain() -> None:
        ids.append(str(flow_run.id))
        task.run(ITEMS, checkpoint=place)

    @flow
    async def in_a_loop() -> None:
        ids.append(str(flow_run.id))
        await task.arun(ITEMS, checkpoint=place)

    def cancel() -> None:
        until(lambda: len(handled) > 10)
        body = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
        api.call("POST", f"flow_runs/{ids[0]}/set_state", body)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Abort):
        plain() if kind == "plain" else asyncio.run(in_a_loop())
    thread.join()
    assert 10 < len(handled) < len(ITEMS)
    assert until(lambda: api.flow_run(ids[0])["state_type"]) == "CANCELLED"
    # What had finished is kept, and what comes next resumes.
    assert task.run(ITEMS[: len(handled)], checkpoint=place).skipped >= len(handled) - 4
