"""The commands that write: `repair` and `reset` on the checkpoint, `publish` beside it."""

from __future__ import annotations

import secrets
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from resumable_tasks.base.text import clean, count, size
from resumable_tasks.checkpoint.directory.archive import archive
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.outstanding import named
from resumable_tasks.checkpoint.directory.reader import Reader, is_checkpoint
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.cli import output
from resumable_tasks.cli.look import checkpoint_argument, damage_lines, json_option, of_a_service
from resumable_tasks.errors import ResumableTasksError, UsageError

if TYPE_CHECKING:
    from resumable_tasks.results.publish import PublishForm


@click.command(
    epilog="\b\nExit codes:\n  0  repaired, or there was nothing to repair"
    "\n  3  a run holds the checkpoint; nothing was changed\n  4  only a copy can replace it\n"
    "\n\b\nExample:\n  resumable repair checkpoints/classify",
)
@checkpoint_argument
@json_option
def repair(checkpoint: str, as_json: bool) -> None:
    """Move damaged files of CHECKPOINT aside.

    The next run redoes the items in them, and only those. Nothing is deleted: damaged files go to
    the checkpoint's folder `damaged`. All other items stay completed.
    """
    from resumable_tasks.checkpoint.directory import repair as repairs
    from resumable_tasks.checkpoint.directory.moving import FOLDER

    store = _existing(checkpoint)
    before = disk.names(store, FOLDER)
    report = repairs.repair(store)
    moved = sorted(disk.names(store, FOLDER) - before)
    left = len(Reader.at(checkpoint).state.done)
    unknown = any(damage.items is None for damage in report.damages)
    redo = report.items - left if report.damages else 0
    document = {
        "checkpoint": store.url,
        "damages": [asdict(damage) for damage in report.damages],
        "moved": moved,
        "completed": left,
        "items_to_redo": redo,
        "more_to_redo": unknown,
        "strays": report.strays,
    }
    text = [f"nothing to repair: {count(left, 'completed item')}, all good"]
    if report.damages:
        more = "and the unknown items of lost records " if unknown else ""
        text = [
            *damage_lines(report.damages),
            *(f"moved to {clean(f'{store.url}/{name}')}" for name in moved),
            f"{count(redo, 'item')} {more}will be redone; {count(left, 'item')} stay completed",
            *of_a_service(store.url, report),
            "next: run the same command again",
        ]
    output.show(as_json, document, text)


@click.command(
    epilog="\b\nExamples:\n  resumable publish checkpoints/classify results/labels"
    "\n  resumable publish checkpoints/classify results/labels --ordered --target-mb 512"
    "\n  resumable publish checkpoints/classify s3://bucket/labels --form delta",
)
@checkpoint_argument
@click.argument("dest")
@click.option(
    "--form",
    type=click.Choice(["parquet", "delta"]),
    default="parquet",
    show_default=True,
    help="Parquet files, or a Delta table to which new rows are appended.",
)
@click.option(
    "--ordered",
    is_flag=True,
    help="Sort the rows by key, integers before strings; holds all rows in memory.",
)
@click.option(
    "--target-mb",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Approximate size of a file in megabytes.",
)
@json_option
def publish(
    checkpoint: str, dest: str, form: PublishForm, ordered: bool, target_mb: int, as_json: bool
) -> None:
    """Write the committed rows of CHECKPOINT to DEST, a folder or a place in a bucket.

    Writes a compacted Parquet dataset, or a Delta table. A reader sees the old data or the new,
    never a mixture. Refuses a DEST that contains anything that publish did not write.
    """
    from resumable_tasks.checkpoint.directory.place import DirectoryReader
    from resumable_tasks.results import publish as publishing

    reader = Reader.at(checkpoint)
    store = reader.store
    result = publishing.publish(
        DirectoryReader(store),
        dest,
        form=form,
        ordered=ordered,
        target_bytes=target_mb * 1_000_000,
    )
    text = (
        f"published {count(result.rows, 'row')} in {count(len(result.files), 'file')}, "
        f"{size(result.bytes)}, to {clean(result.dest)}"
    )
    document = {"checkpoint": store.url, "status": reader.status} | asdict(result)
    output.show(as_json, document, [text])
    if reader.status != "done":
        output.note(
            f"note: the checkpoint's status is {reader.status}: items that are not completed are "
            "not in it"
        )


@click.command(
    epilog="\b\nExit codes:\n  0  archived"
    "\n  2  not confirmed, not a checkpoint, or a service has work of it; nothing was changed"
    "\n  3  a run holds the checkpoint; nothing was changed\n"
    "\n\b\nExample:\n  resumable reset checkpoints/classify --yes",
)
@checkpoint_argument
@click.option(
    "--yes", is_flag=True, help="Do not ask for confirmation; required without a terminal."
)
@click.option(
    "--lose-submissions",
    "lose",
    is_flag=True,
    help="Archive even if a service has paid work of it.",
)
@json_option
def reset(checkpoint: str, yes: bool, lose: bool, as_json: bool) -> None:
    """Archive CHECKPOINT, so that the next run starts from scratch.

    Nothing is deleted: a directory gets a new name beside the old one; in a bucket, the next run
    works below a new number. Works for a damaged checkpoint too.
    """
    store = _existing(checkpoint)
    _what_is_lost(store, lose)
    holds = _what_it_holds(store)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"nothing was changed: {holds}; give --yes to archive it")
        if not click.confirm(f"{clean(holds)}. Archive it?", err=True):
            raise UsageError("nothing was changed", remedy="Answer y, or give --yes, to archive it")
    hold = Holder(store, secrets.token_hex(6))
    hold.take(takeover=False)
    try:
        lost = _what_is_lost(store, lose)
        archived = archive(store, hold.run)
    finally:
        hold.release()
    text = [
        *([f"lost to the next run: {lost}"] if lost else []),
        f"archived to {clean(archived)}",
        f"the next run starts from scratch; to undo: {clean(disk.way_back(store, archived))}",
    ]
    # Whole: a part of it is a command to be pasted.
    document = {"checkpoint": store.url, "archived": archived, "lost": lost or None}
    output.show(as_json, document, text, whole=True)


def _existing(checkpoint: str) -> Store:
    """The store of a checkpoint that is there: nothing is written into any other folder."""
    store = open_store(checkpoint)
    if not is_checkpoint(store):
        raise UsageError(
            f"{store.url} is not a checkpoint; `resumable ls PLACE` finds the checkpoints below a "
            "directory or bucket",
            remedy="Give the path or URL of a checkpoint",
        )
    return store


def _what_is_lost(store: Store, lose: bool) -> str:
    """What a service has, empty if nothing is known to be. Raises `UsageError` unless ``lose``."""
    try:
        reader = Reader(store)
        reader.examine()
    except ResumableTasksError:
        return ""  # it cannot be read, and is archived all the same
    lost = named(reader.state.out)
    if lost and not lose:
        raise UsageError(
            f"{store.url}: {lost}. The next run would submit these again, and pay again; nothing "
            "was changed",
            remedy="Run the job to collect them, then reset; or give --lose-submissions",
        )
    return lost


def _what_it_holds(store: Store) -> str:
    try:
        reader = Reader(store)
        reader.examine()
    except ResumableTasksError:
        return f"{store.url} is a checkpoint that cannot be read"
    return (
        f"{store.url} ({reader.job}, {reader.status}) has "
        f"{count(len(reader.state.done), 'completed item')}, which the next run would do again"
    )
