"""The command `prune`: the oldest partitions of a job's checkpoints are removed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from resumable_tasks.base.text import clean, count, size
from resumable_tasks.cli import output
from resumable_tasks.cli.look import json_option
from resumable_tasks.errors import UsageError

if TYPE_CHECKING:
    from resumable_tasks.task.prune import Pruned

_DAYS = {"d": 1, "w": 7}


@click.command(
    epilog="\b\nExit codes:\n  0  removed, or there was nothing to remove\n  2  not confirmed, or "
    "not a place with partitions; nothing was removed\n  75 the storage failed; run the same "
    "command again to continue\n\n\b\nExamples:\n  resumable prune checkpoints/nightly --keep 30 "
    "--published --dry-run\n  resumable prune s3://bucket/checkpoints/nightly --older-than 90d "
    "--yes",
)
@click.argument("place")
@click.option(
    "--keep", type=click.IntRange(min=1), help="Keep this many partitions, the newest by name."
)
@click.option(
    "--older-than", metavar="DAYS", help="Remove only partitions older than this: 90d, or 12w."
)
@click.option(
    "--published/--unpublished",
    "published",
    default=True,
    help="Remove only partitions whose rows are all still at the place they were published to "
    "(default), or also others.",
)
@click.option("--unfinished", is_flag=True, help="Also remove partitions that are not done.")
@click.option("--damaged", is_flag=True, help="Also remove damaged partitions, whatever they held.")
@click.option(
    "--archived", is_flag=True, help="Also remove what `reset` has archived, by the same rules."
)
@click.option(
    "--lose-submissions",
    "lose",
    is_flag=True,
    help="Also remove partitions for which a service has work.",
)
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option(
    "--yes", is_flag=True, help="Do not ask for confirmation; required without a terminal."
)
@json_option
def prune(
    place: str,
    keep: int | None,
    older_than: str | None,
    published: bool,
    unfinished: bool,
    damaged: bool,
    archived: bool,
    lose: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove the oldest partitions below PLACE, for good.

    PLACE is the checkpoint= of a job that has partition=. Shows first what would be freed, and why
    each other partition stays. Partitions that are not published, not done, damaged or with a
    service stay unless an option says otherwise; partitions with a run at work always stay.
    Leftovers of an interrupted pruning are removed too.
    """
    from resumable_tasks.task.prune import Age, Plan

    given = {"unpublished": not published, "unfinished": unfinished, "damaged": damaged}
    given["lose_submissions"] = lose
    also = {name for name, is_given in given.items() if is_given}
    plan = Plan.of(place, Age(keep, _long(older_than), archived=archived), also)
    found = plan.pruned(dry_run=True)
    if dry_run or not found.removed:
        _show(as_json, found)
        return
    if not yes:
        _show(as_json and not sys.stdin.isatty(), found)
        _confirm(found)
    _show(as_json, plan.carry_out())


def _confirm(found: Pruned) -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            f"nothing was removed; would remove {_freed(found)}",
            remedy="Give --yes to remove them, or --dry-run to only look",
        )
    if not click.confirm(f"Remove {_freed(found)}, for good?", err=True):
        raise UsageError("nothing was removed", remedy="Answer y, or give --yes, to remove it")


def _long(given: str | None) -> timedelta | None:
    if given is None:
        return None
    parts = re.fullmatch(r"([0-9]{1,6})([dw])", given)
    if parts is None:
        raise UsageError(
            f"--older-than {given!r} is not a time", remedy="Give days: 90d, or weeks: 12w"
        )
    return timedelta(days=int(parts[1]) * _DAYS[parts[2]])


def _show(as_json: bool, found: Pruned) -> None:
    output.show(as_json, asdict(found) | {"bytes": found.bytes}, _lines(found))


def _lines(found: Pruned) -> Iterator[str]:
    verb = "remove" if found.dry_run else "removed"
    width = max((len(each.name) for each in found.partitions), default=0)
    for each in found.partitions:
        held = f"{count(each.rows, 'row')}, " if each.rows is not None else ""
        freed = f"{held}{size(each.bytes or 0)}, " if each.removed else ""
        archived = "archived, " if each.archived else ""
        yield (
            f"{verb if each.removed else 'keep':{len(verb)}}  {clean(each.name):{width}}  "
            f"{archived}{freed}{clean(each.why, output.MESSAGE_CHARS)}"
        )
    if found.removed:
        yield f"{'would remove' if found.dry_run else 'removed'} {_freed(found)}"
    else:
        yield f"nothing to remove: {count(len(found.kept), 'partition')} below {found.place}"


def _freed(found: Pruned) -> str:
    gone = found.removed
    rows = count(sum(each.rows or 0 for each in gone), "row")
    all_of = count(len(found.partitions), "partition")
    return f"{len(gone):,} of {all_of}: {rows}, {size(found.bytes)}"
