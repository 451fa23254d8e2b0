"""What handlers print and log, in a flow run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import UsageError, resumable_task
from tests.prefect.api import Api, until

pytestmark = [
    pytest.mark.usefixtures("in_prefect"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ITEMS = [{"id": i} for i in range(4)]
Rows = list[dict[str, Any]]


def on_threads(items: Rows) -> Rows:
    print("printed", [item["id"] for item in items])
    return items


async def on_a_loop(items: Rows) -> Rows:
    await asyncio.sleep(0)
    return on_threads(items)


@pytest.mark.sample
@pytest.mark.parametrize("runner", ["auto", "local"])
@pytest.mark.parametrize("handler", [on_threads, on_a_loop])
@pytest.mark.parametrize("shown", [True, False])
def test_what_a_handler_prints_is_in_the_log_of_the_run_where_the_flow_says_so(
    handler: Any, runner: Any, shown: bool, place: Path, api: Api
) -> None:
    from prefect import flow
    from prefect.logging import get_run_logger
    from prefect.runtime import flow_run

    ids: list[str] = []

    @flow(log_prints=shown)
    def job() -> None:
        ids.append(str(flow_run.id))
        resumable_task(handler, key="id", batch_size=2, runner=runner).run(ITEMS, checkpoint=place)
        get_run_logger().info("that is all")

    job()
    logged = set(until(lambda: "that is all" in (lines := api.logs(ids[0])) and lines))
    printed = {line for line in logged if line.startswith("printed")}
    assert printed == ({"printed [0, 1]", "printed [2, 3]"} if shown else set())


def asks_for_the_logger(items: Rows) -> Rows:
    from prefect.logging import get_run_logger

    get_run_logger().info("said")
    return items


def test_the_logger_of_the_run_is_there_on_threads_and_said_to_be_missing_in_processes(
    place: Path, api: Api
) -> None:
    from prefect import flow
    from prefect.runtime import flow_run

    ids: list[str] = []
    task = resumable_task(asks_for_the_logger, name="job", key="id", batch_size=2)

    @flow
    def job() -> None:
        ids.append(str(flow_run.id))
        with pytest.raises(UsageError, match="which a separate process does not have"):
            task.with_options(runner="processes", concurrency=1).run(ITEMS, checkpoint=place)
        # At once, and no item is to blame.
        assert task.run(ITEMS, checkpoint=place).completed == 4

    job()
    until(lambda: "said" in api.logs(ids[0]))
