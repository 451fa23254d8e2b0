"""`report`: one page of HTML on a checkpoint, or on all below a folder."""

from __future__ import annotations

import click

from resumable_tasks.base.text import clean
from resumable_tasks.checkpoint.directory import finding
from resumable_tasks.checkpoint.directory.finding import looks_like_one
from resumable_tasks.checkpoint.directory.opening import read_manifest
from resumable_tasks.checkpoint.directory.reader import is_checkpoint
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.cli import output
from resumable_tasks.cli.look import _tell, checkpoint_argument, json_option
from resumable_tasks.errors import UsageError

_DATABASES = ("postgresql", "sqlite", "mysql", "mariadb", "oracle", "mssql")


@click.command(
    epilog="\b\nExamples:\n  resumable report checkpoints/classify"
    "\n  resumable report checkpoints/prices -o nights.html"
    "\n  resumable report s3://bucket/checkpoints/classify -o report.html",
)
@checkpoint_argument
@click.option(
    "-o",
    "--output",
    "to",
    default="report.html",
    show_default=True,
    help="The file to write, or the URL of an object in a bucket.",
)
@json_option
def report(checkpoint: str, to: str, as_json: bool) -> None:
    """Write a self-contained HTML page about CHECKPOINT.

    Shows what each run did and how it ended, throughput, failures by class, parked rows, cost, what
    remains, and a few rows; for a folder of partitions, a calendar of them. The page has no scripts
    and loads nothing. Needs Jinja2: pip install "resumable-tasks[report]".
    """
    text = page_of(checkpoint)
    from resumable_tasks.results.report import writing

    if is_one(checkpoint):
        writing.refuse_within(to, checkpoint)
    writing.put(text, to)
    size = len(text.encode("utf-8", "backslashreplace"))
    document = {"checkpoint": checkpoint, "report": to, "bytes": size}
    output.show(as_json, document, [clean(to)])


def page_of(place: str) -> str:
    """The page on a checkpoint or a folder. Raises `UsageError` for what is neither."""
    refuse_other_forms(place)
    from resumable_tasks.results.report import facts, folder, page

    store = open_store(place)
    if is_one(place):
        return page.render(facts.read(store))
    try:
        found = list(finding.find(place, _tell))
    except UsageError:
        found = []
    if not found:
        read_manifest(store)  # says what is wrong
    return folder.render(place, found)


def is_one(place: str) -> bool:
    """True for a place that is a checkpoint, and not a folder of some."""
    store = open_store(place)
    return looks_like_one(store.url) if isinstance(store, LocalStore) else is_checkpoint(store)


def refuse_other_forms(place: str) -> None:
    """Raises `UsageError` for a database, with what it has instead of a report."""
    scheme = place.partition("://")[0].partition("+")[0].lower()
    if "://" in place and scheme in _DATABASES:
        raise UsageError(
            "a report needs a journal, and a table has none: it keeps only its rows, its failures "
            "and the ends of its runs",
            remedy="`resumable sql status` shows these; for a job with SqlCheckpoint(shards=…), "
            "report on the directory that shards= names",
        )
