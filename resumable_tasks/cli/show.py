"""The commands that look closely: `show` at one item, `history` at the runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from resumable_tasks.base.text import clean, command, count, duration
from resumable_tasks.checkpoint.directory.history import Run, runs
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.outstanding import shown, unanswered
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.directory.state import Line, State
from resumable_tasks.checkpoint.directory.trace import Event, Trace, rows_of, trace
from resumable_tasks.cli import output
from resumable_tasks.cli.failed import failure_fields, typed_forms
from resumable_tasks.cli.look import checkpoint_argument, json_option
from resumable_tasks.cli.submissions import described
from resumable_tasks.errors import CheckpointDamaged, UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.submission import Submission
from resumable_tasks.runners.outcome import Failure

_MOST_ROWS, _MOST_EVENTS = 20, 20
_CSV = ("number", "how", "began", "ended", "seconds", "completed", "skipped", "failed", "parked")
_MORE_CSV = ("out", "items", "commits", "cost", "run", "host", "pid")


@click.command(
    epilog="\b\nExit codes:\n  0  shown, whatever the item's status is\n  2  no run has handled an "
    "item with this key yet\n  4  a file that concerns the item is damaged\n\n\b\nExamples:\n  "
    "resumable show checkpoints/classify lesson-17\n  resumable show checkpoints/classify 17 "
    "--json\n  resumable show checkpoints/pairs '[\"de\", 17]'",
)
@checkpoint_argument
@click.argument("key")
@json_option
def show(checkpoint: str, key: str, as_json: bool) -> None:
    """Show what CHECKPOINT knows about the item with this KEY.

    Shows its row or its error; when, by which run, after how many attempts, and what its commit
    cost. Write KEY as `keys` prints it; the quotes of a string are optional.
    """
    reader = Reader.at(checkpoint)
    while True:
        line, found = _found(reader, key)
        try:
            described = _described(reader, line, found)
            break
        except CheckpointDamaged:
            reader.read_new()
            if found.shard is None or found.shard.path in reader.state.shards:
                raise  # and else a run has merged or replaced it meanwhile
    output.show(as_json, described, _lines(described, found))


def _found(reader: Reader, key: str) -> tuple[Line, Trace]:
    for line in typed_forms(key):
        found = trace(reader.store, reader.state, line)
        if found.events:
            return line, found
    raise UsageError(
        f"{reader.store.url}: no run has handled an item with key {keys.shown(key)} yet",
        remedy=f"{command('keys', reader.store.url)} lists the completed ones, "
        f"{command('failures', reader.store.url, '--all')} those that failed",
    )


def _described(reader: Reader, line: Line, found: Trace) -> dict[str, Any]:
    """What is known of the item, as JSON has it."""
    state, failure = reader.state, reader.state.known(line)
    status = _status(state, line, failure)
    rows = None
    if status == "completed" and found.shard is not None:
        rows = rows_of(reader.store, state, found.shard, reader.manifest.key, line).to_pylist()
    done = [event for event in found.events if event.what == "completed"]
    failed = [event for event in found.events if event.what in ("failed", "parked")]
    submission = _submission(state, line)
    chosen = done if status == "completed" else failed if failure and submission is None else []
    last = (chosen or found.events)[-1]
    before = max((event.failure.attempts for event in failed if event.failure), default=0)
    return {
        "checkpoint": reader.store.url,
        "key": keys.parse(line),
        "status": status,
        "time": last.time,
        "run": last.by,
        "run_number": last.run,
        "commit": last.commit,
        "items_in_commit": last.items,
        "cost_of_commit": last.cost,
        "shard": found.shard.path if found.shard else None,
        "attempts": before + (status == "completed"),
        "submission": None if submission is None else described(submission),
        "failure": failure_fields(failure, traceback=True) if failure else None,
        "rows": rows,
        "events": [_event(event) for event in found.events],
    }


def _submission(state: State, line: Line) -> Submission | None:
    """The submission that a service has the item in."""
    for each in state.out:
        if line in keys.split(unanswered(each, state.done).pending):
            return each
    return None


def _status(state: State, line: Line, failure: Failure | None) -> str:
    """The status of an item in one word."""
    if state.done.has_any([line]):
        return "completed"
    if _submission(state, line) is not None:
        return "out"
    if failure is None:
        return "missing"
    if failure.parked:
        return "parked"
    if failure.attempts == 0:
        return "released"
    most = state.max_attempts
    return "quarantined" if most is not None and failure.attempts >= most else "failed"


def _event(event: Event) -> dict[str, Any]:
    failure = event.failure
    about = {"what": event.what, "time": event.time, "commit": event.commit, "run": event.by}
    if failure is None:
        return about
    said = {"error": failure.error, "message": failure.message, "attempts": failure.attempts}
    return {**about, **said}


def _lines(item: dict[str, Any], found: Trace) -> Iterator[str]:
    yield output.bold(keys.shown(item["key"]))
    yield f"  status       {output.status_word(item['status'])}{_meaning(item)}"
    yield f"  checkpoint   {clean(item['checkpoint'])}"
    yield f"  when         {output.when(item['time'])}"
    number = f"run {item['run_number']}, " if item["run_number"] else ""
    yield f"  by           {number}{clean(item['run'], 40)}"
    others = item["items_in_commit"] - 1
    beside = f", with {count(others, 'other item')}" if others > 0 else ""
    shard = f"; rows in {item['shard']}" if item["shard"] else ""
    yield f"  commit       {item['commit']}{beside}{shard}"
    if item["submission"] is not None:
        told = item["submission"]
        handle = _known_by(told["handle"])
        yield f"  submission   {clean(told['token'], 40)}, {told['state']}{handle}"
    if item["cost_of_commit"] is not None:
        cost, items = item["cost_of_commit"], max(1, item["items_in_commit"])
        yield f"  cost         {cost / items:,.3g} on average; {cost:,.4g} for the commit"
    failure = item["failure"]
    if failure and failure["batch"]:
        yield f"  batch        {clean(failure['batch'], 40)}"
    yield f"  attempts     {item['attempts']}"
    if failure:
        error = f"{failure['error']}: {failure['message']}"
        yield f"  error        {clean(error, output.MESSAGE_CHARS)}"
    yield from row_lines(item["rows"])
    if len(found.events) > 1:
        yield "  history"
        for event in found.events[-_MOST_EVENTS:]:
            yield f"    {output.moment(event.time)}  {_told(event)}"
    if failure and failure.get("traceback"):
        yield "  traceback"
        yield from output.traceback_lines(failure["traceback"])


def _known_by(handle: Any) -> str:
    return "" if handle is None else f": {shown(handle)}"


def _meaning(item: dict[str, Any]) -> str:
    status = item["status"]
    if status == "missing" and item["events"][-1]["what"] == "withdrawn":
        return ": its submission was withdrawn; the next run submits it again"
    meanings = {
        "out": ": a service has it; the next run collects it",
        "missing": ": its result was taken back; the next run handles it",
        "released": ": the next run tries it again",
        "parked": ": its result is kept but does not fit the table",
        "quarantined": ": not tried again until `resumable retry` releases it",
    }
    return meanings.get(status, "")


def _told(event: Event) -> str:
    failure = event.failure
    if failure is None or event.what == "released":
        return event.what
    return clean(f"{event.what} with {failure.error}: {failure.message}", 120)


def row_lines(rows: list[dict[str, Any]] | None) -> Iterator[str]:
    """Rows of results, a line a column; None where there can be none."""
    if rows is None:
        return
    if not rows:
        yield "  rows         none"
    for number, row in enumerate(rows[:_MOST_ROWS], 1):
        yield f"  row {number}" if len(rows) > 1 else "  row"
        widest = min(24, max((output.columns_of(clean(name)) for name in row), default=0))
        for name, value in row.items():
            yield f"    {clean(name, 40):<{widest}}  {clean(_value(value), output.MESSAGE_CHARS)}"
    if len(rows) > _MOST_ROWS:
        yield f"  and {len(rows) - _MOST_ROWS:,} more rows; --json shows all"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else output.dumps(value)


@click.command(
    epilog="\b\nExit codes:\n  0  shown, however the runs ended\n  4  the journal is "
    "damaged\n\n\b\nExamples:\n  resumable history checkpoints/classify\n  resumable history "
    "checkpoints/classify --csv > runs.csv",
)
@checkpoint_argument
@json_option
@output.csv_option
def history(checkpoint: str, as_json: bool, as_csv: bool) -> None:
    """List the runs of CHECKPOINT: when each ran, how it ended, what it did, where, at what cost.

    Changes by `retry`, `redo` and `repair` are listed between the runs.
    """
    output.refuse_both(as_json, as_csv)
    reader = Reader.at(checkpoint)
    found = runs(Journal(reader.store, reader.manifest.id).read_new())
    if found and reader.holder is not None and found[-1].ended is None:
        found[-1].how = "running"
    described = [_run(run) for run in found]
    if as_csv:
        output.write_csv((*_CSV, *_MORE_CSV), described)
        return
    output.show(as_json, described, _history(found), whole=True)


def _run(run: Run) -> dict[str, Any]:
    fields = asdict(run)
    for name in ("last", "close"):
        del fields[name]
    return {**fields, "seconds": run.seconds, "bound_by": run.close.get("bound_by")}


_TITLES = ("RUN", "BEGAN", "TOOK", "ENDED", "DONE", "FAILED", "PARKED", "OUT", "COST", "WHERE")


def _history(found: list[Run]) -> Iterator[str]:
    if not found:
        yield "no run has started yet"
        return
    rows = [_row(run) for run in found]
    # Columns in which nothing stands are left out.
    keep = [at for at in range(len(_TITLES)) if at < 5 or any(row[at] for row in rows)]
    titles = [_TITLES[at] for at in keep]
    cells = [[row[at] for at in keep] for row in rows]
    yield from output.table(titles, cells, right="RUN TOOK DONE FAILED PARKED OUT COST")


def _row(run: Run) -> tuple[str, ...]:
    began, where = output.moment(run.began)[:16], clean(run.host or "?", 40)
    if run.number is None:
        how = f"{run.how}: {count(run.items or 0, 'item')}"
        return ("", began, "", how, "", "", "", "", "", where)
    seconds = run.seconds
    return (
        str(run.number),
        began,
        "?" if seconds is None else duration(seconds),
        output.status_word(clean(run.how, 20)),
        f"{run.completed:,}",
        f"{run.failed:,}",
        f"{run.parked:,}" if run.parked else "",
        f"{run.out:,}" if run.out else "",
        "" if run.cost is None else f"{run.cost:,.4g}",
        where,
    )
