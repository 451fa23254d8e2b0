"""The command `import`: progress that was kept by hand becomes a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from resumable_tasks.base.text import clean, count
from resumable_tasks.cli import output
from resumable_tasks.cli.look import json_option


@click.command(
    "import",
    epilog="\b\nExit codes:\n  0  imported, or everything was already there\n  2  the file or an "
    "option is wrong, or the checkpoint belongs to another job; nothing was changed\n  3  a run "
    "holds the checkpoint; nothing was changed\n\n\b\nExamples:\n  resumable import done.jsonl "
    "--key id --checkpoint checkpoints/classify\n  resumable import ids.txt --job send "
    "--checkpoint checkpoints/send --dry-run",
)
@click.argument("file", type=click.Path())
@click.option(
    "--checkpoint", required=True, help="The checkpoint's directory or URL, new or existing."
)
@click.option("--job", help="The job's name; by default, set by the first run.")
@click.option("--key", multiple=True, help="The job's key=; repeat it for a composite key.")
@click.option("--version", help="The job's version; by default, set by the first run.")
@click.option(
    "--results",
    type=click.Choice(["one", "many", "none"]),
    help="The job's results=: none keeps no rows, many keeps all lines of an item.",
)
@click.option(
    "--format",
    type=click.Choice(["jsonl", "lines"]),
    help="The format, if it is not clear from the file's name and first line.",
)
@click.option(
    "--key-type",
    type=click.Choice(["string", "int"]),
    help="The type of the keys; others are converted.",
)
@click.option("--failed-too", is_flag=True, help="Include items that failed or are not done.")
@click.option("--skip-failed", is_flag=True, help="Leave out items that failed or are not done.")
@click.option(
    "--done-if",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Count lines with this value as done; * matches any value.",
)
@click.option(
    "--failed-if",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Count lines with this value as not done.",
)
@click.option("--keys-only", is_flag=True, help="Keep no rows, whatever results= the job has.")
@click.option(
    "--complete", is_flag=True, help="FILE is complete: accept a last line without a newline."
)
@click.option("--dry-run", is_flag=True, help="Only show what would be imported.")
@json_option
def import_progress(
    file: str, checkpoint: str, as_json: bool, dry_run: bool, **options: Any
) -> None:
    """Import FILE, in which your own program has recorded what is done.

    FILE is JSON lines or a JSON array with the key in a field, or a list of ids; convert CSV to
    JSON lines, for instance with DuckDB. Items in FILE count as completed in the checkpoint from
    then on, and the job's next run skips them. FILE is read completely first. A last line that may
    be torn is left out; any other unreadable line ends the import.
    """
    from resumable_tasks.checkpoint.importing.importing import import_file

    done = import_file(file, checkpoint, dry_run=dry_run, **options)
    would = "would import" if dry_run else "imported"
    rows = f", {count(done.rows, 'row')}," if done.rows else ""
    job = clean(done.job) or "the first run names the job"
    text = [f"{would} {count(done.imported, 'item')}{rows} into {clean(done.checkpoint)} ({job})"]
    if done.skipped:
        text.append(f"{count(done.skipped, 'item')} skipped: already completed there")
    if done.duplicates:
        text.append(f"{count(done.duplicates, 'line')} left out: a later line has the same item")
    if done.failed:
        text.append(
            f"{count(done.failed, 'line')} left out: items that failed or are not done; the next "
            "run handles them"
        )
    if done.columns:
        columns = ", ".join(f"{clean(name, 80)} {kind}" for name, kind in done.columns.items())
        text.append(f"columns: {columns}")
    elif done.imported and not done.rows and done.results != "none":
        text.append("without results: table() and publish() will not include them")
    if done.key == "item" and not options["key"]:
        text.append("the items are their own keys; if the job's key= is a field, give --key")
    if done.torn is not None:
        text.append(
            f"line {done.torn:,} has no newline and may be torn: it is left out, and its item is "
            "done again; if the file is complete, give --complete"
        )
    if not dry_run:
        text.append(f"next: run the job with checkpoint={clean(repr(done.checkpoint))}")
    document = {name: None if value == "" else value for name, value in asdict(done).items()}
    output.show(as_json, {**document, "dry_run": dry_run}, text)
