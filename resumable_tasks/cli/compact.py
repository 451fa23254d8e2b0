"""The command `compact`: many small shards become few."""

from __future__ import annotations

from dataclasses import asdict

import click

from resumable_tasks.base.text import count
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.cli import output
from resumable_tasks.cli.look import checkpoint_argument, json_option


@click.command(
    epilog="\b\nExit codes:\n  0  compacted, or there was nothing to merge"
    "\n  3  a run holds the checkpoint; nothing was changed"
    "\n  4  the checkpoint is damaged; what was merged before that stands\n"
    "\n\b\nExample:\n  resumable compact checkpoints/classify",
)
@checkpoint_argument
@click.option(
    "--target-mb",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Approximate maximum size of a merged shard in megabytes.",
)
@json_option
def compact(checkpoint: str, target_mb: int, as_json: bool) -> None:
    """Merge the many small files of CHECKPOINT into few large ones.

    No item is done again, and every row stays available exactly once throughout. Merged files stay
    for current readers; the next run or the next `compact` deletes them. Runs also merge
    automatically while at work.
    """
    from resumable_tasks.checkpoint.directory import compacting

    store = open_store(checkpoint)
    found = compacting.compact(store, target_mb * 1_000_000)
    text = [f"nothing to merge: {count(found.after, 'shard')}"]
    if found.left:
        text = [
            f"{count(found.before, 'shard')} are now {found.after:,}",
            f"the next run or the next compact deletes the {count(found.left, 'merged file')}",
        ]
    if found.deleted:
        text.append(f"deleted {count(found.deleted, 'file')} that no longer counted")
    if found.folded:
        text.append(f"{count(found.folded, 'record')} of the journal went into segments")
    output.show(as_json, {"checkpoint": store.url} | asdict(found), text)
