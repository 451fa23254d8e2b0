"""Which day a run is about: the one that it was scheduled for, however late it is."""

from __future__ import annotations

import datetime
import sys
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from resumable_tasks.errors import UsageError


def scheduled_date(tz: str | datetime.tzinfo | None = None) -> datetime.date:
    """The date of the flow run's *scheduled* start; today outside of a flow run.

    A run that is late, is retried after midnight, is resumed or rerun the next morning keeps its
    date, so that it finds its checkpoint again. Give it to ``partition=``.

    Args:
        tz: the time zone whose date it is: a name such as ``"Europe/Zurich"``, or a ``tzinfo``.
            By default that of the deployment's schedules, else this machine's.

    Raises:
        UsageError: there is no such time zone, or the deployment's schedules have several.
    """
    zone = _zone(tz) if tz is not None else None
    start = _scheduled_start()
    if start is None:
        return datetime.datetime.now(zone).date()
    return start.astimezone(zone or _schedules_zone()).date()


def _zone(tz: str | datetime.tzinfo) -> datetime.tzinfo:
    if isinstance(tz, datetime.tzinfo):
        return tz
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"tz={tz!r} is no time zone; give a name such as 'Europe/Zurich' (where the system "
            "has no list of them: pip install tzdata)"
        ) from error


def _scheduled_start() -> datetime.datetime | None:
    """When the flow run around was to start, in UTC; None outside of one."""
    contexts = sys.modules.get("prefect.context")
    if contexts is None or contexts.FlowRunContext.get() is None:
        return None
    from prefect.runtime import flow_run

    start: datetime.datetime = flow_run.scheduled_start_time
    return start


def _schedules_zone() -> datetime.tzinfo | None:
    """The time zone of the schedules of this flow run's deployment; None if it has none.

    Raises `UsageError` if they are in several.
    """
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return None
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment(context.flow_run.deployment_id)
    made_by = context.flow_run.created_by.id if context.flow_run.created_by else None
    schedules = [each for each in deployment.schedules if each.id == made_by]
    schedules = schedules or [each for each in deployment.schedules if each.active]
    found = {getattr(each.schedule, "timezone", None) or "UTC" for each in schedules}
    if len(found) > 1:
        raise UsageError(
            f"the schedules of deployment {deployment.name!r} are in several time zones "
            f"({', '.join(sorted(found))}): say whose date it is, by scheduled_date(tz=…)"
        )
    return _zone(found.pop()) if found else None
