"""One date of the nightly ingest, from its source to what is published; without Prefect."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from flows import http_client, http_pages, http_rows, python_files
from flows.http_api import HttpApi
from flows.http_cursor import PageCursor
from resumable_tasks import RunResult, UsageError
from resumable_tasks.engine.events import Event, Listener, Stopping

CHECKPOINT = ".resumable/nightly_ingest"
OUT = "published/nightly_ingest"

Function = TypeVar("Function", bound=Callable[..., Any])


def ingest_date(
    date: datetime.date,
    sources: Sequence[str] | None = None,
    api: HttpApi | None = None,
    *,
    checkpoint: str = CHECKPOINT,
    out: str = OUT,
    limit: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> RunResult:
    """Ingest what the source has for one date, and publish the rows when all are there.

    The source is ``sources``, files, folders and globs, or ``api``; with neither, the Python
    files of this interpreter. ``{date}`` in a source is the date. ``options`` are any of
    `resumable_task`'s. Raises what `ResumableTask.run` raises, and what the source does; nothing
    is published then, and what was done is kept for the next run.
    """
    if sources and api is not None:
        raise UsageError("sources and api exclude each other: a date is ingested from one of them")
    if limit is not None and limit < 1:
        raise UsageError(f"limit={limit} is not a whole number from 1")
    place: dict[str, Any] = {"checkpoint": checkpoint, "partition": date, "progress": progress}
    if api is not None:
        result = _from_api(api, date, limit, place, options)
    else:
        named = [source.replace("{date}", str(date)) for source in sources or ()]
        paths = python_files.expand(named or python_files.default_sources())
        files = islice(python_files.source_files(paths), limit)
        result = python_files.ingest.with_options(**options).run(files, **place)
    result.publish(partition_folder(out, date))
    return result


def _from_api(
    api: HttpApi,
    date: datetime.date,
    limit: int | None,
    place: dict[str, Any],
    options: dict[str, Any],
) -> RunResult:
    stop = threading.Event()

    def listen(event: Event) -> None:
        if isinstance(event, Stopping):
            stop.set()  # do not wait for the API's next page

    job = http_rows.ingest_records.with_options(key=api.key, version=api.version, **options)
    # Beside the checkpoints and for all dates, since a page may be the same as the day before.
    folder = Path(place["checkpoint"]) / "http-pages"
    copies = None if "://" in str(place["checkpoint"]) else http_pages.PageCopies(folder)
    dated = api.for_date(date)
    with http_client.Client(dated) as client, ExitStack() as opened:
        listeners: list[Listener] = [listen]
        cursor = None
        if api.resume:
            here = Path(place["checkpoint"])
            cursor = PageCursor(here / "http-cursor" / str(date), here / str(date), dated)
            opened.enter_context(cursor)
            listeners.append(cursor.listen)
        found: Iterable[Any] = http_pages.records(client, copies=copies, stop=stop, cursor=cursor)
        result = job.run(islice(found, limit), listeners=listeners, **place)
        if cursor is not None:
            cursor.finish()
        return result


def partition_folder(out: str, date: datetime.date) -> Path:
    """Where a date is published: a folder of a dataset that is partitioned as Hive does it."""
    return Path(out) / f"date={date}"


def flow(*, name: str) -> Callable[[Function], Function]:
    """Stands in for Prefect's ``flow`` where there is no Prefect: the function stays what it is."""
    return lambda function: function
