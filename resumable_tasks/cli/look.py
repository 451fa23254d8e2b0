"""The commands that only look: safe at any time, also while a run is at work."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from resumable_tasks.base.text import clean, command, count, duration, size
from resumable_tasks.checkpoint.directory import finding
from resumable_tasks.checkpoint.directory.completed import completed_at
from resumable_tasks.checkpoint.directory.outstanding import lost_intents
from resumable_tasks.checkpoint.directory.reader import LastRun, Reader, described
from resumable_tasks.checkpoint.store.ahead import in_order
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.urls import is_url, open_store
from resumable_tasks.cli import output
from resumable_tasks.errors import EXIT_DAMAGED, CheckpointDamaged, UsageError
from resumable_tasks.items import keys as keys_

if TYPE_CHECKING:
    from resumable_tasks.checkpoint.directory.repair import Report
    from resumable_tasks.checkpoint.estimate import Estimate

checkpoint_argument = click.argument("checkpoint")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

_STATUS_CODES = """\b
Exit codes:
  0  done             the last run ended well; what it left is tolerated
  1  failed           the last run ended, and items have failed
  3  held             a run is at work on it now
  4  damaged          files are missing or not what was written
  5  spent            the last run has used up its budget
  75 incomplete       the last run was interrupted or died: run it again to resume
"""


@click.command(epilog=_STATUS_CODES + "\n\b\nExample:\n  resumable status checkpoints/classify")
@checkpoint_argument
@json_option
@click.pass_context
def status(context: click.Context, checkpoint: str, as_json: bool) -> None:
    """Show the progress of CHECKPOINT, and what to do next.

    Shows what is completed and what failed, how the last run ended, and who is at work on it now.
    Reads the journal and the sizes of the shards, but not the shards; use `verify` for that.
    """
    reader = Reader(open_store(checkpoint))
    reader.examine()
    output.show(as_json, reader.describe(), _status_lines(reader))
    if reader.damage is not None:
        raise reader.damage
    context.exit(reader.exit_code)


def _status_lines(reader: Reader) -> Iterator[str]:
    state, found = reader.state, reader.manifest
    damaged = reader.damage is not None
    version = state.version or found.version
    named = f" (version {clean(version, 80)})" if version else ""
    yield output.bold(clean(reader.job)) + named
    yield f"  status       {output.status_word(reader.status)}"
    yield f"  checkpoint   {clean(reader.store.url)}"
    yield f"  created      {output.when(found.created)}"
    yield (
        f"  completed    {_completed(reader)}, "
        f"{count(state.rows, 'row')} in {count(len(state.shards), 'shard')}, "
        f"{size(state.bytes)}" + (" (as far as the journal can be read)" if damaged else "")
    )
    failed = count(len(state.failures), "item") if state.failures else "none"
    kinds = ", ".join(f"{n:,} × {clean(kind, 80)}" for kind, n in reader.errors().items())
    yield f"  failed       {failed}" + (f": {kinds}" if kinds else "")
    if reader.keyless.there:
        yield f"  and          {reader.keyless}"
    if state.parked:
        yield f"  parked       {count(len(state.parked), 'item')}: kept, not in the table yet"
    if len(state.out):
        left = _to_do(reader, len(state.parked))
        yield f"  out          {_out(reader)}" + (f", {left:,} to do" if left is not None else "")
    if state.pace.cost or reader.total is not None:
        of = f" of {reader.total:g}, by all runs" if reader.total is not None else " by all runs"
        yield f"  spent        {state.pace.cost:,.4g}{of}"
    yield f"  journal      {count(state.records, 'record')}, {count(state.runs, 'run')}"
    yield f"  last commit  {output.when(reader.last_commit) if reader.last_commit else 'none yet'}"
    if reader.last is not None:
        yield f"  last run     {_last_run(reader, reader.last)}"
        yield f"  began        {output.when(reader.last.claim.time)}"
        yield f"  by           {_by(reader.last)}"
        if sentence := _bound_by(reader.last):
            yield f"  bound by     {clean(sentence, 200)}"
    if reader.since_the_end:
        yield f"  since then   {reader.since_the_end}"
    yield f"  held by      {_holder(reader)}"
    yield f"next: {clean(reader.next)}"


def _out(reader: Reader) -> str:
    out = reader.state.out.counts
    cost = f", expected cost {out.cost:,.4g}" if out.cost else ""
    return f"{count(out.items, 'item')} {out.where}{cost}"


def _to_do(reader: Reader, aside: int) -> int | None:
    """The items that the next run would handle, beside those that are out; None if unknown."""
    state, expected = reader.state, reader.state.expected
    if expected is None:
        return None
    return max(0, expected - len(state.done) - aside - state.out.counts.items)


def _completed(reader: Reader) -> str:
    """The completed items, and their share of all where that is known and not the whole."""
    done, expected = len(reader.state.done), reader.state.expected
    if not expected or done >= expected:
        return count(done, "item")
    return f"{done:,} of {count(expected, 'item')} ({100 * done // expected} %)"


def _last_run(reader: Reader, run: LastRun) -> str:
    if run.close is not None:
        n = run.close.info
        return (
            f"{clean(str(n.get('how')), 40)} after {duration(n.get('seconds') or 0)}: "
            f"{n.get('completed', 0):,} completed, {n.get('skipped', 0):,} skipped, "
            f"{n.get('failed', 0):,} failed, "
            + (f"{n['parked']:,} parked, " if n.get("parked") else "")
            + f"of {n.get('total', 0):,}"
        )
    if reader.holder is not None:
        return f"at work, {len(reader.state.done) - run.found:,} completed so far"
    return "died, or was ended by an error, without recording its end"


def _by(run: LastRun) -> str:
    info, name = run.claim.info, clean(run.claim.run, 40)
    if "host" not in info:
        return f"run {name}"
    host, pid = clean(str(info["host"]), 80), clean(str(info.get("pid")), 20)
    return f"run {name} on {host} (pid {pid})"


def _bound_by(run: LastRun) -> str:
    """What the run has waited for, if its end says so."""
    found = run.close.info.get("bound_by") if run.close is not None else None
    return str(found.get("sentence", "")) if isinstance(found, dict) else ""


def _holder(reader: Reader) -> str:
    who = reader.holder
    if who is None:
        return "nobody"
    if not who:
        return "a run that is just starting or ending"
    return (
        f"run {clean(str(who.get('run')), 40)} on {clean(str(who.get('host')), 80)} "
        f"(pid {clean(str(who.get('pid')), 20)}), since {output.when(str(who.get('since')))}"
    )


@click.command(
    "ls",
    epilog="\b\nExamples:\n  resumable ls\n  resumable ls checkpoints --json"
    "\n  resumable ls s3://bucket/checkpoints",
)
@click.argument("place", required=False)
@click.option(
    "--failed", is_flag=True, help="List only checkpoints with failed or parked items, or damage."
)
@json_option
@output.csv_option
def list_checkpoints(place: str | None, failed: bool, as_json: bool, as_csv: bool) -> None:
    """List all checkpoints in and below PLACE, a directory or the URL of one in a bucket.

    Includes archived ones. Without PLACE, lists those in the working directory and some levels
    below it; of hidden folders, only .resumable. Symbolic links are not followed. Exits with 0,
    whatever the checkpoints' states are.
    """
    output.refuse_both(as_json, as_csv)
    there = list(finding.find_here(_tell) if place is None else finding.find(place, _tell))
    places = [each.place for each in there]
    far = place is not None and is_url(place)
    described = in_order(_described, places, finding.AHEAD) if far else map(_described, places)
    every = [
        {"path": each.place, "archived": each.archived} | what
        for each, what in zip(there, described, strict=True)
    ]
    found = [each for each in every if _has_failed(each)] if failed else every
    if as_csv:
        output.write_csv(_CSV, found)
    else:
        output.show(as_json, found, _table(found), whole=True)
    if not found and not as_json:
        where = (
            f"below {place}"
            if place is not None
            else f"in {os.getcwd()} and {finding.DEEPEST} levels below it. Name their place: "
            "`resumable ls PLACE`"
        )
        what = "checkpoints with failed items or damage" if every else "checkpoints"
        output.note(f"there are no {what} {where}")


_CSV = (
    *("path", "status", "archived", "job", "version", "completed", "rows", "bytes", "failed"),
    *("parked", "out", "submissions", "spent", "runs", "created", "last_commit", "error"),
)


def _has_failed(entry: dict[str, Any]) -> bool:
    left = entry.get("failed") or entry.get("parked") or entry.get("without_key")
    return bool(left) or entry["status"] in ("failed", "damaged", "unusable")


def _tell(error: OSError) -> None:
    output.note(f"cannot read {error.filename}: {error.strerror}")


def _table(found: list[dict[str, Any]]) -> Iterator[str]:
    if not found:
        return
    titles = ["STATUS", "COMPLETED", "FAILED", "OUT", "LAST COMMIT", "JOB", "CHECKPOINT"]
    rows = [[*_row(each)] for each in found]
    if not any(each.get("out") for each in found):
        for row in (titles, *rows):
            del row[3]
    yield from output.table(titles, rows, right="COMPLETED FAILED OUT")
    if len(found) > 1:
        statuses = Counter(each["status"] for each in found).most_common()
        kinds = ", ".join(f"{n:,} {status}" for status, n in statuses)
        sums = [sum(each.get(name) or 0 for each in found) for name in ("completed", "failed")]
        held = size(sum(each.get("bytes") or 0 for each in found))
        yield f"{len(found):,} checkpoints: {kinds}"
        yield f"{count(sums[0], 'item')} completed, {sums[1]:,} failed; {held}"


def _described(place: str) -> dict[str, Any]:
    try:
        reader = Reader(open_store(place) if is_url(place) else LocalStore(place))
        reader.examine()
        return reader.describe()
    except Exception as error:  # noqa: BLE001 - whatever it is, the other rows are worth having
        damaged = isinstance(error, CheckpointDamaged)
        return {"status": "damaged" if damaged else "unusable", "error": str(error)}


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        output.status_word(entry["status"], ", archived" if entry["archived"] else ""),
        f"{entry['completed']:,}" if "completed" in entry else "?",
        f"{entry['failed']:,}" if "failed" in entry else "?",
        f"{entry['out']:,}" if entry.get("out") else "",
        output.ago(entry.get("last_commit")),
        clean(entry.get("job") or "?", 30),
        clean(entry["path"]),
    )


@click.command(
    epilog="\b\nExamples:\n  resumable keys checkpoints/classify | head"
    "\n  resumable keys checkpoints/classify | wc -l",
)
@checkpoint_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of lines.")
@click.option("--jsonl", is_flag=True, help="Print one object per line: the key and the time.")
def keys(checkpoint: str, as_json: bool, jsonl: bool) -> None:
    """Print the keys of the completed items of CHECKPOINT.

    Prints one JSON value per line, in the order of commits, each key once. The number 1 and the
    string "1" are different keys and give different lines.
    """
    if as_json and jsonl:
        raise UsageError("--json and --jsonl exclude each other", remedy="Give one of them")
    separator = "[" if as_json else ""
    for time, lines in completed_at(open_store(checkpoint)):
        text = output.safe_json(lines.decode("utf-8", "backslashreplace"))
        if jsonl:
            end = f',"t":{output.dumps(time)}}}'
            text = '{"key":' + text.replace("\n", end + '\n{"key":') + end
        text = separator + text.replace("\n", ",\n") if as_json else text + "\n"
        separator = ",\n"
        if not output.write(text, utf8=True):
            return
    if as_json:
        output.write("[]\n" if separator == "[" else "]\n", utf8=True)


@click.command(
    epilog="\b\nExamples:\n  resumable plan checkpoints/classify"
    "\n  resumable plan checkpoints/classify --items 100000",
)
@checkpoint_argument
@click.option(
    "--items",
    type=click.IntRange(min=0),
    help="Number of items of the job; by default as in its last run.",
)
@json_option
def plan(checkpoint: str, items: int | None, as_json: bool) -> None:
    """Estimate what the next run of CHECKPOINT would handle, how long it would take, and its cost.

    Time and cost are estimated from earlier runs. The items themselves are not read; `dry_run=True`
    in the job reads them and gives exact numbers of items.
    """
    reader = Reader.at(checkpoint)
    state = reader.state
    expected = state.expected if items is None else items
    quarantined = len(state.quarantined)
    remaining = None
    if expected is not None:
        aside = quarantined + len(state.parked) + _new_and_out(reader)
        remaining = state.pace.estimate(max(0, expected - len(state.done) - aside))
    document = {
        "checkpoint": reader.store.url,
        "items": expected,
        "completed": len(state.done),
        "failed": len(state.failures),
        "quarantined": quarantined,
        "parked": len(state.parked),
        **described(state.out),
        "remaining": remaining.items if remaining else None,
        "seconds": remaining.seconds if remaining else None,
        "cost": remaining.cost if remaining else None,
    }
    output.show(as_json, document, _plan_lines(reader, document, remaining))


def _new_and_out(reader: Reader) -> int:
    """How many items are out that are not completed; not those that have changed since."""
    state = reader.state
    return sum(len(state.done.missing(list(keys_.split(each.lines)))) for each in state.out)


def _plan_lines(reader: Reader, found: dict[str, Any], remaining: Estimate | None) -> Iterator[str]:
    items, quarantined = found["items"], found["quarantined"]
    yield output.bold(clean(reader.job))
    yield f"  items        {'unknown' if items is None else f'{items:,}'}"
    yield f"  completed    {found['completed']:,}"
    yield f"  failed       {found['failed']:,}" + (
        f", {quarantined:,} of them quarantined and not tried again" if quarantined else ""
    )
    if found["parked"]:
        yield f"  parked       {found['parked']:,}, kept and not handled again"
    if found["submissions"]:
        yield f"  out          {_out(reader)}, to be collected"
    if remaining is None:
        yield "  next run     unknown, because the number of items is unknown: give --items"
    else:
        yield f"  next run     would handle {remaining}"


@click.command(
    epilog="\b\nExit codes:\n  0  nothing is damaged\n  4  something is\n"
    "\n\b\nExample:\n  resumable verify checkpoints/classify",
)
@checkpoint_argument
@json_option
@click.pass_context
def verify(context: click.Context, checkpoint: str, as_json: bool) -> None:
    """Read every byte of CHECKPOINT and list what is damaged.

    Checks every record against its checksum and its predecessor, and every shard against the commit
    that names it. Changes nothing.
    """
    from resumable_tasks.checkpoint.directory import repair

    store = open_store(checkpoint)
    report = repair.verify(store)
    document = {"checkpoint": store.url, "damaged": bool(report.damages)} | asdict(report)
    output.show(as_json, document, _report_lines(store.url, report))
    context.exit(EXIT_DAMAGED if report.damages else 0)


def of_a_service(place: str, report: Report) -> Iterator[str]:
    """What was lost of submissions, as far as that is known."""
    yield from lost_intents(report.strays, place)
    if report.submits and any(damage.items is None for damage in report.damages):
        yield (
            "a lost record may have named items that a service has: these would be submitted, and "
            "paid for, again. Check the service before you run the job"
        )


def _report_lines(place: str, report: Report) -> Iterator[str]:
    yield from damage_lines(report.damages)
    yield from of_a_service(place, report)
    damaged = f"{count(len(report.damages), 'file')} damaged" if report.damages else "all good"
    yield (
        f"read {count(report.records, 'record')} and {count(report.shards, 'shard')}: "
        f"{count(report.items, 'completed item')}, {count(report.rows, 'row')}; {damaged}"
    )
    if report.orphans:
        yield (
            f"{count(len(report.orphans), 'orphan')}: shards that no commit names, left by a crash "
            "or about to be committed; harmless, the next run removes leftovers"
        )
    first = report.damages[0] if report.damages else None
    if first is not None and first.file == "job.json" and first.items is None:
        yield (
            f"next: restore job.json from a copy; or {clean(command('reset', place))} archives the "
            "checkpoint"
        )
    elif report.damages:
        yield (
            f"next: {clean(command('repair', place))} moves the damaged files "
            "aside; then run the same command again: it redoes only those items"
        )


def damage_lines(damages: list[Any]) -> Iterator[str]:
    for damage in damages:
        items = (
            "an unknown number of items" if damage.items is None else count(damage.items, "item")
        )
        yield f"damaged: {clean(damage.file)}: {clean(damage.what, output.MESSAGE_CHARS)} ({items})"
