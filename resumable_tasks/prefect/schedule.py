"""The day and time that a run is about: its scheduled ones, however late it runs."""

from __future__ import annotations

import datetime
import sys
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from resumable_tasks.errors import UsageError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def scheduled_date(tz: str | datetime.tzinfo | None = None) -> datetime.date:
    """Return the date of the flow run's *scheduled* start; outside a flow run, today.

    A run that is late, retried after midnight, or resumed or rerun the next morning keeps its date,
    so that it finds its checkpoint again. Pass the date as ``partition=``. In a subflow this is the
    date of the outermost flow run, the only one that stays the same when that run is retried.

    Args:
        tz: the time zone of the date: a name such as ``"Europe/Zurich"``, or a ``tzinfo``. The
            default is the time zone of the schedule that created the run, otherwise that of the
            deployment's schedules, otherwise this machine's. Without ``tz``, a run of a deployment
            asks Prefect's API.

    Raises:
        UsageError: there is no such time zone; or none is given, and the deployment was deleted, or
            its schedules have several time zones and none of them created the run.
    """
    zone = _zone(tz) if tz is not None else None
    flow_run = _outermost_flow_run()
    if flow_run is None:
        return datetime.datetime.now(zone).date()
    start = flow_run.expected_start_time
    assert start is not None
    return start.astimezone(zone or _schedules_zone(flow_run)).date()


def scheduled_time() -> datetime.datetime:
    """Return the flow run's *scheduled* start in UTC; outside a flow run, the current full hour.

    For jobs that run several times a day: pass the time as ``partition=``. A run that is late,
    retried, resumed or rerun keeps its time, so that it finds its checkpoint again. In a subflow
    this is the time of the outermost flow run.
    """
    flow_run = _outermost_flow_run()
    if flow_run is None:
        now = datetime.datetime.now(datetime.UTC)
        return now.replace(minute=0, second=0, microsecond=0)
    start = flow_run.expected_start_time
    assert start is not None
    whole_seconds = int(start.timestamp())
    return datetime.datetime.fromtimestamp(whole_seconds, datetime.UTC)


def _zone(tz: str | datetime.tzinfo) -> datetime.tzinfo:
    if isinstance(tz, datetime.tzinfo):
        return tz
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError) as error:
        raise UsageError(
            f"tz={tz!r} is not a time zone; give a name such as 'Europe/Zurich' (if the system has "
            "no time zone database: pip install tzdata)"
        ) from error


def _outermost_flow_run() -> FlowRun | None:
    """The flow run around the caller; in a subflow, the outermost flow run."""
    contexts = sys.modules.get("prefect.context")
    context = contexts.FlowRunContext.get() if contexts is not None else None
    if context is None or context.flow_run is None:
        return None
    from prefect.client.orchestration import get_client

    found: FlowRun = context.flow_run
    if found.parent_task_run_id is None:
        return found
    with get_client(sync_client=True) as client:
        while found.parent_task_run_id is not None:
            parent = client.read_task_run(found.parent_task_run_id).flow_run_id
            if parent is None:  # a task that was started outside of a flow
                break
            found = client.read_flow_run(parent)
    return found


def _schedules_zone(flow_run: FlowRun) -> datetime.tzinfo | None:
    """The time zone of this flow run's schedule; None if there is none."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    if flow_run.deployment_id is None:
        return None
    try:
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment(flow_run.deployment_id)
    except ObjectNotFound as error:
        raise UsageError(
            "the deployment of this flow run and its schedule were deleted: give the time zone, "
            "scheduled_date(tz=…)"
        ) from error
    made_by = flow_run.created_by.id if flow_run.created_by is not None else None
    schedules = (
        [each for each in deployment.schedules if each.id == made_by]
        or [each for each in deployment.schedules if each.active]
        or deployment.schedules
    )
    found = {getattr(each.schedule, "timezone", None) or "UTC" for each in schedules}
    if len(found) > 1:
        raise UsageError(
            f"the schedules of deployment {deployment.name!r} are in several time zones "
            f"({', '.join(sorted(found))}): give one, scheduled_date(tz=…)"
        )
    return _zone(found.pop()) if found else None
