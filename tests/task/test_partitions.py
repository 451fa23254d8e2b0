"""A partition is a folder: a text, a date, or a time that has one name in all time zones."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from resumable_tasks import UsageError, resumable_task, scheduled_time
from resumable_tasks.task.partitions import folder_of

ZURICH = ZoneInfo("Europe/Zurich")
EIGHT = datetime(2026, 11, 23, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("partition", "folder"),
    [
        ("eu", "eu"),
        (date(2026, 11, 23), "2026-11-23"),
        (EIGHT, "2026-11-23T08-00-00Z"),
        (EIGHT.astimezone(ZURICH), "2026-11-23T08-00-00Z"),
        (EIGHT.astimezone(timezone(timedelta(hours=-7))), "2026-11-23T08-00-00Z"),
        (EIGHT.replace(microsecond=5), "2026-11-23T08-00-00.000005Z"),
        (datetime(2026, 11, 23, 8), "2026-11-23T08-00-00"),
    ],
)
def test_a_partition_has_this_folder(partition: Any, folder: str) -> None:
    assert folder_of(partition) == folder


def test_the_hour_that_comes_twice_in_autumn_is_two_partitions(tmp_path: Path) -> None:
    job = resumable_task(lambda items: items, name="hourly", key="id")
    first = datetime(2026, 10, 25, 2, 30, tzinfo=ZURICH)
    for hour in (first, first.replace(fold=1)):
        run = job.run([{"id": 1}], checkpoint=tmp_path, partition=hour)
        assert (run.completed, run.skipped) == (1, 0)
    assert job.run([{"id": 1}], checkpoint=tmp_path, partition=first).skipped == 1


@pytest.mark.parametrize("partition", ["", "a/b", "..", "2026-11-23T08:00", 7, b"x"])
def test_what_names_no_folder_is_refused(partition: Any) -> None:
    with pytest.raises(UsageError, match="cannot be a folder's name"):
        folder_of(partition)


def test_no_time_of_pandas_is_no_partition() -> None:
    pandas = pytest.importorskip("pandas")
    assert folder_of(pandas.Timestamp("2026-11-23T08:00", tz="UTC")) == "2026-11-23T08-00-00Z"
    with pytest.raises(UsageError):
        folder_of(pandas.NaT)


def test_outside_of_a_flow_run_the_time_is_the_hour_that_has_begun() -> None:
    before = datetime.now(UTC)
    found = scheduled_time()
    assert found.tzinfo is UTC
    assert (found.minute, found.second, found.microsecond) == (0, 0, 0)
    assert before - timedelta(hours=1) < found <= datetime.now(UTC)
