"""The date of a run is that of its schedule, in the schedule's time zone, whenever it runs."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from resumable_tasks import Failing, JobFailed, UsageError, resumable_task, scheduled_date
from tests.prefect.api import Api, until
from tests.prefect.deployed import Deployed

pytestmark = [
    pytest.mark.usefixtures("in_prefect"),
    # Prefect's and its dependencies' own are not ours to fix.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TOKYO = {"cron": "30 1 * * *", "timezone": "Asia/Tokyo"}


def a_flow(seen: list[Any], tz: Any = None) -> Any:
    from prefect import flow

    @flow(name="nightly")
    def nightly() -> None:
        seen.append(scheduled_date(tz))

    return nightly


def day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


def date_in(flow_run: str, tz: Any = None) -> datetime.date:
    """`scheduled_date` within this flow run, without all that a run costs."""
    import uuid

    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    with get_client(sync_client=True) as client:
        found = client.read_flow_run(uuid.UUID(flow_run))
    with FlowRunContext.model_construct(flow_run=found):
        return scheduled_date(tz)


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize(
    ("schedule", "date_of"),
    [
        (TOKYO, {"2024-11-23T16:30:00Z": "2024-11-24"}),
        (
            {"cron": "0 22 * * *", "timezone": "America/Los_Angeles"},
            {"2024-11-24T06:00:00Z": "2024-11-23"},
        ),
        # Summer time begins on the 31st of March, and ends on the 27th of October.
        (
            {"cron": "30 0 * * *", "timezone": "Europe/Zurich"},
            {
                "2024-03-29T23:30:00Z": "2024-03-30",
                "2024-03-30T23:30:00Z": "2024-03-31",
                "2024-03-31T22:30:00Z": "2024-04-01",
            },
        ),
        (
            {"cron": "30 23 * * *", "timezone": "Europe/Zurich"},
            {
                "2024-10-26T21:30:00Z": "2024-10-26",
                "2024-10-27T22:30:00Z": "2024-10-27",
                "2024-10-28T22:30:00Z": "2024-10-28",
            },
        ),
        (
            {
                "interval": 86_400,
                "anchor_date": "2024-01-01T22:15:00-10:00",
                "timezone": "Pacific/Honolulu",
            },
            {"2024-07-01T08:15:00Z": "2024-06-30"},
        ),
        (
            {"rrule": "FREQ=DAILY;BYHOUR=23;BYMINUTE=45;BYSECOND=0", "timezone": "America/Bogota"},
            {"2024-11-24T04:45:00Z": "2024-11-23"},
        ),
        # A schedule without a time zone goes by UTC, whatever the machine does.
        ({"cron": "30 23 * * *"}, {"2024-11-23T23:30:00Z": "2024-11-23"}),
        ({"cron": "30 0 * * *"}, {"2024-11-23T00:30:00Z": "2024-11-23"}),
    ],
    ids=lambda value: f"{value.get('timezone')}" if isinstance(value, dict) else "",
)
def test_the_date_is_that_of_the_schedules_time_zone(
    api: Api, monkeypatch: pytest.MonkeyPatch, schedule: dict[str, Any], date_of: dict[str, str]
) -> None:
    """The runs are made by the server's scheduler, each within two hours of a midnight."""
    import time

    deployed = Deployed.of(api, a_flow([]), schedule)
    first, last = min(date_of), max(date_of)
    hour = datetime.timedelta(hours=1)
    runs = deployed.scheduled(
        (datetime.datetime.fromisoformat(first) - hour).isoformat(),
        (datetime.datetime.fromisoformat(last) + hour).isoformat(),
    )
    assert all(run["auto_scheduled"] for run in runs)
    # A zone of the machine in which most of these dates would be others.
    monkeypatch.setenv("TZ", "Pacific/Kiritimati" if "T0" in first else "Pacific/Pago_Pago")
    time.tzset()
    try:
        found = {run["expected_start_time"]: str(date_in(run["id"])) for run in runs}
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == date_of


def test_a_late_run_that_fails_and_is_retried_has_one_date_and_one_checkpoint(
    api: Api, place: Path
) -> None:
    from prefect import flow

    seen: list[tuple[datetime.date, int]] = []

    @resumable_task(key="id", batch_size=5, failing=Failing(pause_after=None, isolate=False))
    def prices(rows: list[Any]) -> list[Any]:
        if rows[0]["id"] >= 50 and not seen:
            raise OSError("the shop is closed")
        return rows

    @flow(name="nightly")
    def nightly() -> None:
        items = [{"id": n} for n in range(100)]
        date = scheduled_date()
        try:
            result = prices.run(items, checkpoint=place, partition=date)
        except JobFailed as error:
            seen.append((date, error.result.skipped if error.result is not None else -1))
            raise
        seen.append((date, result.skipped))

    deployed = Deployed.of(api, nightly, TOKYO)
    # Months late, and on a day that is another one in UTC.
    (run,) = deployed.scheduled("2024-01-31T16:00:00Z", "2024-01-31T17:00:00Z")
    assert deployed.carry_out(run["id"]).is_failed()
    assert deployed.retry(run["id"]).is_completed()
    assert seen == [(day("2024-02-01"), 0), (day("2024-02-01"), 50)]
    assert [path.name for path in place.iterdir()] == ["2024-02-01"]
    assert api.flow_run(run["id"])["run_count"] == 2


def test_a_run_that_was_suspended_has_its_date_when_it_is_resumed(api: Api) -> None:
    from prefect import flow
    from prefect.exceptions import Pause
    from prefect.flow_runs import suspend_flow_run

    seen: list[datetime.date] = []

    @flow(name="nightly")
    def nightly() -> None:
        seen.append(scheduled_date())
        suspend_flow_run(key="approval", timeout=600)

    deployed = Deployed.of(api, nightly, TOKYO)
    run = deployed.created("2024-05-31T15:30:00Z")
    with pytest.raises(Pause):  # by which a worker's process ends
        deployed.carry_out(run)
    until(lambda: api.flow_run(run)["state"]["name"] == "Suspended")
    api.call("POST", f"flow_runs/{run}/resume", {})
    assert deployed.carry_out(run).is_completed()
    assert seen == [day("2024-06-01")] * 2


@pytest.mark.parametrize("how", ["plain", pytest.param("async", marks=pytest.mark.long)])
def test_a_subflow_has_the_date_of_the_flow_run_that_was_scheduled(api: Api, how: str) -> None:
    """A retry of the outer one makes another subflow run, which begins when it begins."""
    from prefect import flow

    seen: list[datetime.date] = []

    @flow
    def innermost() -> None:
        seen.append(scheduled_date())

    @flow
    def inner() -> None:
        innermost()

    @flow(name="nightly")
    def plain() -> None:
        inner()

    @flow
    async def ainner() -> None:
        seen.append(scheduled_date())

    @flow(name="nightly")
    async def anightly() -> None:
        await ainner()

    deployed = Deployed.of(api, plain if how == "plain" else anightly, TOKYO)
    state = deployed.carry_out(deployed.created("2024-05-31T15:30:00Z"))
    if asyncio.iscoroutine(state):
        state = asyncio.run(state)
    assert state.is_completed(), state
    assert seen == [day("2024-06-01")]


def test_a_task_run_has_the_date_of_its_flow_run(api: Api) -> None:
    from prefect import flow, task

    seen: list[datetime.date] = []

    @task
    def step() -> None:
        seen.append(scheduled_date())

    @flow(name="nightly")
    def nightly() -> None:
        step()
        step.submit().wait()

    deployed = Deployed.of(api, nightly, TOKYO)
    deployed.carry_out(deployed.created("2024-05-31T15:30:00Z"))
    assert seen == [day("2024-06-01")] * 2


def test_of_several_zones_that_counts_whose_schedule_has_made_the_run(api: Api) -> None:
    deployed = Deployed.of(
        api, a_flow([]), TOKYO, {"cron": "45 16 * * *", "timezone": "America/New_York"}
    )
    tokyo, new_york = deployed.scheduled("2024-11-23T16:00:00Z", "2024-11-23T22:00:00Z")
    assert [run["created_by"]["id"] for run in (tokyo, new_york)] == deployed.schedules
    assert date_in(tokyo["id"]) == day("2024-11-24")
    assert date_in(new_york["id"]) == day("2024-11-23")

    by_hand = deployed.created("2024-11-23T16:30:00Z")
    with pytest.raises(UsageError, match=r"America/New_York, Asia/Tokyo.*scheduled_date\(tz="):
        date_in(by_hand)
    assert date_in(by_hand, "Asia/Tokyo") == day("2024-11-24")


def test_schedules_of_one_zone_are_one(api: Api) -> None:
    deployed = Deployed.of(api, a_flow([]), TOKYO, {**TOKYO, "cron": "0 12 * * *"})
    assert date_in(deployed.created("2024-11-23T16:30:00Z")) == day("2024-11-24")


def test_schedules_that_are_switched_off_count_only_if_all_are(api: Api) -> None:
    utc = {"cron": "0 0 * * *", "timezone": "UTC"}
    deployed = Deployed.of(api, a_flow([]), {**TOKYO, "active": False}, utc)
    assert date_in(deployed.created("2024-11-23T16:30:00Z")) == day("2024-11-23")
    deployed = Deployed.of(api, a_flow([]), {**TOKYO, "active": False})
    assert date_in(deployed.created("2024-11-23T16:30:00Z")) == day("2024-11-24")


def test_without_a_schedule_the_machines_time_zone_counts(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    run = Deployed.of(api, a_flow([])).created("2024-11-23T16:30:00Z")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert date_in(run) == day("2024-11-24")
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_schedule_that_is_gone_is_not_guessed(api: Api) -> None:
    from prefect.context import FlowRunContext

    deployed = Deployed.of(api, a_flow([]), TOKYO)
    seen: list[Any] = []

    def late() -> None:
        api.call("DELETE", f"deployments/{deployed.id}")
        assert FlowRunContext.get() is not None
        with pytest.raises(UsageError, match=r"were deleted.*scheduled_date\(tz="):
            scheduled_date()
        seen.append(scheduled_date("Asia/Tokyo"))

    from prefect import flow

    deployed.flow = flow(name="nightly")(late)
    deployed.carry_out(deployed.created("2024-11-23T16:30:00Z"))
    assert seen == [day("2024-11-24")]


def test_a_time_zone_that_is_given_wins(api: Api) -> None:
    run = Deployed.of(api, a_flow([]), TOKYO).created("2024-11-23T16:30:00Z")
    assert date_in(run) == day("2024-11-24")
    assert date_in(run, "UTC") == day("2024-11-23")
    assert date_in(run, ZoneInfo("Asia/Kolkata")) == day("2024-11-23")
    assert date_in(run, datetime.timezone(datetime.timedelta(hours=8))) == day("2024-11-24")


@pytest.mark.parametrize("tz", ["Europe/Zuerich", "", "../../etc/passwd", "/etc/localtime", 7])
def test_a_time_zone_that_there_is_not_is_an_error(api: Api, tz: Any) -> None:
    with pytest.raises(UsageError, match=r"is not a time zone.*tzdata"):
        scheduled_date(tz)


def test_outside_of_a_flow_run_it_is_today() -> None:
    for tz in ("Pacific/Kiritimati", "Pacific/Pago_Pago", None):
        zone = ZoneInfo(tz) if tz else None
        before = datetime.datetime.now(zone).date()
        found = scheduled_date(tz)
        assert before <= found <= datetime.datetime.now(zone).date()


@pytest.mark.parametrize("partitioned", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_scheduled_run_that_finds_all_done_by_another_nights_run_is_warned(
    api: Api, place: Path, partitioned: bool
) -> None:
    from prefect import flow

    @resumable_task(key="id")
    def prices(rows: list[Any]) -> list[Any]:
        return rows

    @flow(name="nightly")
    def nightly() -> None:
        partition = scheduled_date() if partitioned else None
        prices.run([{"id": n} for n in range(10)], checkpoint=place, partition=partition)

    deployed = Deployed.of(api, nightly, TOKYO)
    runs = deployed.scheduled("2024-01-30T16:00:00Z", "2024-01-31T17:00:00Z")
    assert len(runs) == 2
    assert all(deployed.carry_out(run["id"]).is_completed() for run in runs)

    def warned(run: str) -> bool:
        lines = until(lambda: [x for x in api.logs(run) if "items done" in x] and api.logs(run))
        return any("partition=scheduled_date()" in line for line in lines)

    assert [warned(run["id"]) for run in runs] == [False, not partitioned]
