"""The command about results that do not fit the table: `accept` takes them over once they do."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import click

from resumable_tasks.base.text import clean, command, count
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.form import Job, Opening
from resumable_tasks.cli import output
from resumable_tasks.cli.look import checkpoint_argument, json_option
from resumable_tasks.engine.accept import accept as accept_parked
from resumable_tasks.errors import EXIT_FAILED, UsageError
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.plan import Planning
from resumable_tasks.runners.outcome import Failure, ResultsMode
from resumable_tasks.runners.values.columns import columns_of


@click.command(
    epilog="\b\nExit codes:\n  0  nothing is parked any more\n  1  some of it does not fit yet"
    "\n  3  a run holds the checkpoint; nothing was changed"
    "\n  4  the checkpoint is damaged; nothing was changed\n"
    "\n\b\nExamples:\n  resumable accept checkpoints/classify --json-column arguments"
    "\n  resumable accept checkpoints/classify --schema jobs:Answer"
    "\n  resumable accept checkpoints/classify --convert jobs:plain_limit",
)
@checkpoint_argument
@click.option(
    "--json-column",
    "json_columns",
    metavar="COLUMN",
    multiple=True,
    help="Keep the values of this column as JSON text, those of the table too.",
)
@click.option(
    "--schema",
    metavar="MODULE:NAME",
    help="The columns and their types: a pyarrow.Schema, a pydantic model or a dataclass.",
)
@click.option(
    "--convert",
    metavar="MODULE:FUNCTION",
    help="A function of a parked row that returns one that fits; both are dicts.",
)
@json_option
@click.pass_context
def accept(
    context: click.Context,
    checkpoint: str,
    json_columns: Sequence[str],
    schema: str | None,
    convert: str | None,
    as_json: bool,
) -> None:
    """Take over the parked results of CHECKPOINT that fit the table now.

    The handler is not called. What still does not fit stays parked, as it is. Give the job the same
    schema= and json_columns=, so that its next results fit as well. Modules are looked for in the
    current folder too.
    """
    reader = Reader.at(checkpoint)
    columns = columns_of(_named(schema) if schema else None, json_columns)
    converter = _named(convert) if convert else None
    driver = _opened(reader, Job("", "", "one", Planning(), columns=columns))
    try:
        scheme = KeyScheme.of(reader.manifest.key)
        accepted = accept_parked(driver, scheme, _results(reader), converter)
        left = driver.parked()
        _end(driver, reader, accepted, left)
    finally:
        driver.close()
    document = {
        "checkpoint": reader.store.url,
        "accepted": accepted,
        "parked": len(left),
        "example": {"key": left[0].key, "message": left[0].message} if left else None,
    }
    output.show(as_json, document, _lines(checkpoint, accepted, left))
    context.exit(EXIT_FAILED if left else 0)


def _opened(reader: Reader, job: Job) -> DirectoryCheckpoint:
    """The checkpoint, opened as its last run has."""
    state = reader.state
    wanted = replace(reader.manifest, version=state.version or reader.manifest.version)
    job = replace(
        job,
        name=wanted.job,
        version=wanted.version,
        results=_results(reader),
        max_attempts=state.max_attempts,
    )
    return DirectoryCheckpoint.open(reader.store, wanted, job, Opening(expected=state.expected))


def _results(reader: Reader) -> ResultsMode:
    return cast(ResultsMode, reader.manifest.results)


def _end(
    driver: DirectoryCheckpoint, reader: Reader, accepted: int, left: Sequence[Failure]
) -> None:
    """Say how the last run has ended, as far as that has changed."""
    before = reader.last.close.info if reader.last and reader.last.close else {}
    how = driver.found.ended
    if how is None:
        return  # it has died; so it stays
    if how == "failed" and not (left or reader.state.failures):
        how = "done"
    counts = {name: value for name, value in before.items() if name != "how"}
    driver.end(how, {**counts, "accepted": accepted, "parked": len(left)})


def _lines(checkpoint: str, accepted: int, left: Sequence[Failure]) -> Iterator[str]:
    if not (accepted or left):
        yield "nothing is parked"
        return
    yield f"{count(accepted, 'item')} accepted, {count(len(left), 'item')} still parked"
    if left:
        yield f"  for example: {clean(left[0].message, output.MESSAGE_CHARS)}"
        yield f"next: {command('failures', checkpoint, '--parked', '--jsonl')} lists them"
    else:
        yield "next: run the same command again, with the same schema= and json_columns="


def _named(text: str) -> Any:
    """The object that ``module:name`` names. Raises `UsageError`."""
    module, _, name = text.partition(":")
    if not (module and name):
        raise UsageError(f"{text!r} names nothing: give MODULE:NAME, such as jobs:Answer")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{text} cannot be imported: {error}; nothing was changed") from error
