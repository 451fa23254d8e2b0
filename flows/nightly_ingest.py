"""Every night: take in what a source has, one row an item, resumable, published in Parquet.

    python -m flows.nightly_ingest [SOURCE…]                     Python files: take stock of them
    python -m flows.nightly_ingest --from DATE --to DATE …       a range of dates, one by one

A SOURCE is a file, a folder or a glob; by default the standard library and the installed packages
of the interpreter that runs this. Or it is the address of a JSON API, which `flows.http_ingest`
takes in. Each date has its own checkpoint and its own folder, so that

* a run that was killed goes on where it was, by the same command;
* a second run of the same date finds all done, and handles nothing;
* the folders of all dates together are one dataset: ``dataset(out, partitioning="hive")``;
* with ``--keep 30`` the checkpoints of older dates are removed, once they are published.

To Prefect it is the flow ``flows/nightly_ingest.py:nightly_ingest``. Started as a script it is a
flow run too if PREFECT_API_URL names a server; otherwise, or with ``--local``, nothing but this
process takes part, and Prefect need not be installed.
"""

from __future__ import annotations

import datetime
from itertools import islice

from flows import python_files
from flows._command import command, partition_folder
from flows._prefect import as_flow
from resumable_tasks import RunResult, UsageError, prune, scheduled_date


def ingest(
    sources: list[str] | None = None,
    date: datetime.date | None = None,
    tz: str | None = None,
    checkpoint: str = ".resumable/nightly_ingest",
    out: str = "published/nightly_ingest",
    batch_size: int = 50,
    concurrency: int = 4,
    limit: int | None = None,
    processes: bool = False,
    keep: int | None = None,
    progress: bool | None = None,
) -> RunResult:
    """Ingest one date: nothing lost, nothing twice, whatever kills it; resumed by the next run.

    Args:
        sources: files, folders and globs, or the address of one JSON API; {date} is the date.
        date: which date; by default that of the scheduled start, and so the same in every retry.
        tz: the time zone of the schedule, such as Europe/Berlin, to tell the date by.
        checkpoint: the folder or URL of the checkpoints, with one a date below it.
        out: the folder of the dataset, with one a date below it.
        batch_size: items a batch, at most.
        concurrency: batches at once.
        limit: only the first so many items.
        processes: batches in processes and not in threads, since parsing computes.
        keep: the checkpoints of so many dates stay, and this one; older ones are removed once they
            are done and all their rows are published. By default all stay.
        progress: whether to show a bar; by default if standard error is a terminal.
    """
    date = date or scheduled_date(tz=tz)
    for name, value in (("limit", limit), ("keep", keep)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value} is not a whole number from 1")
    named = [source.replace("{date}", str(date)) for source in sources or ()]
    if any(source.startswith(("http://", "https://")) for source in named):
        from flows import http_ingest

        if len(named) > 1:
            raise UsageError(
                "the address of an API cannot be combined with other sources: its rows differ"
            )
        result = http_ingest.ingest(
            named[0],
            date=date,
            checkpoint=checkpoint,
            out=out,
            batch_size=batch_size,
            concurrency=concurrency,
            limit=limit,
            progress=progress,
        )
        _age(checkpoint, keep, date)
        return result
    job = python_files.ingest.with_options(
        batch_size=batch_size,
        concurrency=concurrency,
        runner="processes" if processes else "auto",
    )
    paths = python_files.expand(named or python_files.default_sources())
    files = islice(python_files.source_files(paths), limit)
    result = job.run(files, checkpoint=checkpoint, partition=date, progress=progress)
    result.publish(partition_folder(out, date))
    _age(checkpoint, keep, date)
    return result


def _age(checkpoint: str, keep: int | None, date: datetime.date) -> None:
    """Remove the checkpoints of old dates."""
    if keep is not None:
        prune(checkpoint, keep=keep, spare=date)


nightly_ingest = as_flow(ingest, "nightly-ingest")
main = command(ingest, nightly_ingest, unit="files")

if __name__ == "__main__":
    main()
