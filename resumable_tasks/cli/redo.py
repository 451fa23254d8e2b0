"""The command `redo`: completed items are handled again by the next run."""

from __future__ import annotations

from collections.abc import Sequence

import click

from resumable_tasks.base.text import command, count
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.cli import output
from resumable_tasks.cli.failed import typed_forms, typed_key
from resumable_tasks.cli.look import checkpoint_argument, json_option
from resumable_tasks.items import keys as keys_


@click.command(
    epilog="\b\nExit codes:\n  0  the items are missing now, or none was chosen\n  2  no such item "
    "is completed, or the condition is invalid; nothing was changed\n  3  a run holds the "
    "checkpoint; nothing was changed\n  4  rows of these items are damaged; nothing was "
    "changed\n\n\b\nExamples:\n  resumable redo checkpoints/classify --key 17 --key lesson-18\n  "
    "resumable redo checkpoints/classify --where \"label = 'other'\" --dry-run\n  resumable redo "
    "checkpoints/classify --before 2026-11-23T08:00Z",
)
@checkpoint_argument
@click.option(
    "--key", "keys", multiple=True, help="Redo the completed or parked item with this key."
)
@click.option(
    "--where",
    metavar="SQL",
    help="Redo items whose rows meet this SQL condition (SQLite), on the columns of the results.",
)
@click.option(
    "--before",
    metavar="TIME",
    help="Redo items whose results were committed before this time; UTC by default.",
)
@click.option("--dry-run", is_flag=True, help="Only show how many items would be redone.")
@json_option
def redo(
    checkpoint: str,
    keys: Sequence[str],
    where: str | None,
    before: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let the next run handle completed items of CHECKPOINT again.

    Their rows are removed from the results; all other rows stay available throughout. If several
    kinds of options are given, an item must match all of them; of several keys, any one.
    """
    from resumable_tasks.task.redo import redo as redo_items

    state = Reader.at(checkpoint).state
    known = _Known(state.done, state.parked)
    chosen = [keys_.parse(_typed(key, known, state)) for key in keys] or None
    done = redo_items(
        Directory(checkpoint), keys=chosen, where=where, before=before, dry_run=dry_run
    )
    estimate = state.pace.estimate(len(done))
    document = {
        "checkpoint": Directory(checkpoint).store().url,
        "items": len(done),
        "keys": done,
        "seconds": estimate.seconds,
        "cost": estimate.cost,
        "dry_run": dry_run,
    }
    if dry_run:
        text = [f"the next run would handle these again: {estimate}"]
    elif done:
        parked = f" and {len(state.parked):,} parked ones" if state.parked else ""
        text = [
            f"{len(done):,} of {count(len(state.done), 'completed item')}{parked} will be handled "
            "again",
            *_out(state, done),
            f"next: run the same command again; it handles {estimate}",
        ]
    else:
        text = ["no completed item matches; nothing was changed"]
    output.show(as_json, document, text)


def _typed(text: str, known: keys_.Lines, state: State) -> bytes:
    """The canonical form of a key; also of one that is not completed, but with a service."""
    out = (form for form in typed_forms(text) if state.out.holding(form) is not None)
    return next(out, None) or typed_key(text, known, "is completed", command("keys", state.place))


def _out(state: State, done: Sequence[keys_.Key]) -> list[str]:
    """A line about those that a service has already, as they had changed."""
    if not len(state.out):
        return []
    lines = set(map(keys_.canonical, done))
    out = sum(len(lines.intersection(keys_.split(each.lines))) for each in state.out)
    return (
        [f"a service has {out:,} of them; these are collected, not submitted again"] if out else []
    )


class _Known:
    """The keys that `redo` takes: of completed items, and of parked ones."""

    def __init__(self, *known: keys_.Lines) -> None:
        self._known = known

    def __contains__(self, line: bytes, /) -> bool:
        return any(line in each for each in self._known)
