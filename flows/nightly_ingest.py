"""Every night: take in what a source has, one row an item, resumable, published in Parquet.

    python -m flows.nightly_ingest [SOURCE…]                     Python files: take stock of them
    python -m flows.nightly_ingest --api API.json                the records of an HTTP JSON API
    python -m flows.nightly_ingest --from DATE --to DATE …       a range of dates, one by one

A SOURCE is a file, a folder or a glob; by default the standard library and the installed packages
of the interpreter that runs this. Each date has its own checkpoint and its own folder, so that

* a run that was killed goes on where it was, by the same command;
* a second run of the same date finds all done, and handles nothing;
* the folders of all dates together are one dataset: ``dataset(out, partitioning="hive")``.

To Prefect it is the flow ``flows/nightly_ingest.py:nightly_ingest``. Started as a script it is a
flow run too if PREFECT_API_URL names a server; otherwise, or with ``--local``, nothing but this
process takes part, and Prefect need not be installed.

Exit codes: 0 done · 1 items failed · 2 usage · 3 held by another run · 4 damaged checkpoint ·
75 interrupted, run again to resume. Of several dates, the highest.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows import prefect_server
from flows.http_api import HttpApi, read_http_api
from flows.ingest import CHECKPOINT, OUT, ingest_date, partition_folder
from resumable_tasks import Interrupted, JobFailed, ResumableTasksError, RunResult, UsageError

# As a script (or in a worker process of one) it does not pay for the import of Prefect, which
# takes seconds. `_as_flow_run` imports this module by its name, and then it is a flow.
if TYPE_CHECKING or __name__ in ("__main__", "__mp_main__"):
    from flows.ingest import flow
else:
    try:
        from prefect import flow
    except ImportError:
        from flows.ingest import flow

Run = Callable[[datetime.date], RunResult]

_AGAIN_LATER = Interrupted.exit_code


@flow(name="nightly-ingest")
def nightly_ingest(
    sources: list[str] | None = None,
    api: HttpApi | None = None,
    date: datetime.date | None = None,
    tz: str | None = None,
    checkpoint: str = CHECKPOINT,
    out: str = OUT,
    batch_size: int = 50,
    concurrency: int = 4,
    limit: int | None = None,
) -> Any:
    """Ingest one date: nothing lost, nothing twice, whatever kills it; resumed by the next run.

    Args:
        sources: files, folders and globs; by default the Python files of this interpreter.
        api: an HTTP JSON API as the source, instead of files.
        date: which date; by default that of the scheduled start, and so the same in every retry.
        tz: the time zone of the schedule, such as "Europe/Berlin", to tell the date by.
        checkpoint: the folder of the checkpoints, with one a date below it.
        out: the folder of the dataset, with one a date below it.
        batch_size: items a batch, at most.
        concurrency: batches at once.
        limit: only the first so many items.
    """
    result = ingest_date(
        _date_or_scheduled(date, tz),
        sources,
        api,
        checkpoint=checkpoint,
        out=out,
        limit=limit,
        batch_size=batch_size,
        concurrency=concurrency,
    )
    if flow.__module__ == "flows.ingest":  # there is no Prefect
        return result
    from resumable_tasks import flow_state

    return flow_state(result)


def _date_or_scheduled(date: datetime.date | None, tz: str | None) -> datetime.date:
    if date is not None:
        return date
    from resumable_tasks import scheduled_date

    return scheduled_date(tz=tz)


@dataclass(frozen=True)
class DateDone:
    """How a date ended: its exit code, None if it was not begun; and what there is to say."""

    date: datetime.date
    code: int | None
    text: str


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for each request
    try:
        dates = _dates(args)
        run = _as_flow_run(args) if _wants_flow_run(args) else _here(args)
    except ResumableTasksError as error:
        logging.error("%s", error)  # noqa: TRY400 - the message says what to do; no traceback
        return error.exit_code
    done: list[DateDone] = []
    for date in dates:
        # What makes a run end with "again later" (a signal, a full disk, an API that is down)
        # would meet the next date too. All else is this date's own.
        if done and done[-1].code in (None, _AGAIN_LATER):
            done.append(DateDone(date, None, "not begun"))
        else:
            done.append(_one_date(run, date, args))
    if args.first:
        print("\ndate        exit  result")
        for each in done:
            print(f"{each.date}  {'–' if each.code is None else each.code:>4}  {each.text}")
    return max(each.code or 0 for each in done)


def _one_date(run: Run, date: datetime.date, args: argparse.Namespace) -> DateDone:
    try:
        result = run(date)
    except (ResumableTasksError, Interrupted) as error:
        logging.error("%s", error)  # noqa: TRY400 - the message says what to do; no traceback
        some = error.result if isinstance(error, JobFailed | Interrupted) else None
        text = _counts(some) if some is not None else str(error).splitlines()[0]
        return DateDone(date, error.exit_code, text)
    kind = "files" if args.api is None else "records"
    print(f"{result.total:,} {kind} on {date}: {_counts(result)}")
    print(f"published in {partition_folder(args.out, date)}", flush=True)
    return DateDone(date, 0, _counts(result))


def _counts(result: Any) -> str:
    return (
        f"{result.completed:,} handled now, {result.skipped:,} resumed, {result.failed:,} failed, "
        f"in {result.seconds:.1f} s"
    )


def _here(args: argparse.Namespace) -> Run:
    """Runs a date in this process, without Prefect."""

    def run(date: datetime.date) -> RunResult:
        return ingest_date(
            date,
            args.sources,
            args.api,
            checkpoint=args.checkpoint,
            out=args.out,
            limit=args.limit,
            progress=args.progress,
            batch_size=args.batch_size,
            concurrency=args.concurrency,
            runner="processes" if args.processes else "auto",
        )

    return run


def _wants_flow_run(args: argparse.Namespace) -> bool:
    return not args.local and prefect_server.is_named()


def _as_flow_run(args: argparse.Namespace) -> Run:
    """Runs a date as a flow run of the server that PREFECT_API_URL names."""
    if args.processes:
        raise UsageError(
            f"--processes is for --local: a flow run on {prefect_server.address()} "
            "(PREFECT_API_URL) has its batches run by the flow's task runner"
        )
    prefect_server.require()
    # By its name, unlike this script, it is a flow.
    as_flow = importlib.import_module("flows.nightly_ingest").nightly_ingest

    def run(date: datetime.date) -> RunResult:
        with prefect_server.its_errors():
            result: RunResult = as_flow(
                sources=args.sources or None,
                api=args.api,
                date=date,
                checkpoint=args.checkpoint,
                out=args.out,
                batch_size=args.batch_size,
                concurrency=args.concurrency,
                limit=args.limit,
            )
        return result

    return run


def _dates(args: argparse.Namespace) -> list[datetime.date]:
    if not args.first and not args.last:
        return [_date_or_scheduled(args.date, args.tz)]
    if args.date or not args.first or not args.last:
        raise UsageError("a range of dates is --from DATE --to DATE, without --date")
    days = (args.last - args.first).days
    if days < 0:
        raise UsageError(f"--from {args.first} is after --to {args.last}")
    return [args.first + datetime.timedelta(days=day) for day in range(days + 1)]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.nightly_ingest",
        description="Ingest files, or the records of an HTTP API: one row each, resumable, in "
        "Parquet.",
        epilog="Exit codes: 0 done, 1 items failed, 2 usage, 3 held by another run, 4 damaged "
        "checkpoint, 75 interrupted: run the same command again. Of several dates, the highest.",
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="file, folder or glob of Python files; {date} in it is the date (default: the "
        "standard library and the installed packages)",
    )
    add = parser.add_argument
    add(
        "--api",
        metavar="FILE_OR_JSON",
        type=_api,
        help="an HTTP JSON API as the source: a JSON object, or a file of one, with the fields of "
        "flows.http_api.HttpApi",
    )
    add("--date", type=day, help="partition (default: today)")
    add("--from", dest="first", metavar="DATE", type=day, help="each date from this one …")
    add("--to", dest="last", metavar="DATE", type=day, help="… to this one, one after the other")
    add("--tz", help="time zone of today, such as Europe/Berlin (default: the machine's)")
    add("--checkpoint", default=CHECKPOINT, help="default: %(default)s; a folder a date below it")
    add("--out", default=OUT, help="default: %(default)s; a folder date=… below it")
    add("--batch-size", type=int, default=50, help="items a batch (default: %(default)s)")
    add("--concurrency", type=int, default=4, help="batches at once (default: %(default)s)")
    add("--processes", action="store_true", help="in processes, not threads: parsing computes")
    add("--limit", type=count, help="only the first so many items")
    add("--local", action="store_true", help="without Prefect, even if PREFECT_API_URL is set")
    add("--no-progress", dest="progress", action="store_false", default=None, help="no bar")
    args = parser.parse_args(argv)
    if args.sources and args.api:
        parser.error("SOURCE and --api exclude each other")
    return args


def _api(text: str) -> HttpApi:
    try:
        return read_http_api(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def day(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


def count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
