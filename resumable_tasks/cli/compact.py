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
    help="About how many megabytes a merged shard has at most.",
)
@json_option
def compact(checkpoint: str, target_mb: int, as_json: bool) -> None:
    """Merge the many small files of CHECKPOINT into few large ones.

    Nothing is done again, and each row is there once at every moment. The files that were merged
    stay for those who are reading them; the next run deletes them, or the next `compact`. A run
    does all this by itself while it is at work.
    """
    from resumable_tasks.checkpoint.directory import compacting

    store = open_store(checkpoint)
    found = compacting.compact(store, target_mb * 1_000_000)
    text = [f"nothing to merge: {count(found.after, 'shard')}"]
    if found.left:
        text = [
            f"{count(found.before, 'shard')} are {found.after:,} now",
            f"the {count(found.left, 'file')} that were merged are deleted by the next run, "
            "or the next time",
        ]
    if found.deleted:
        text.append(f"deleted {count(found.deleted, 'file')} that no longer counted")
    if found.folded:
        text.append(f"{count(found.folded, 'record')} of the journal went into segments")
    output.show(as_json, {"checkpoint": store.url} | asdict(found), text)
