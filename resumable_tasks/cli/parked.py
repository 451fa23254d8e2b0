"""The command about results that do not fit the table: `accept` takes them over once they do."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import click

from resumable_tasks.base.text import clean, command, count
from resumable_tasks.checkpoint.directory import schemas
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.form import Job, Opening
from resumable_tasks.cli import output
from resumable_tasks.cli.database import names_a_table, sql
from resumable_tasks.cli.look import checkpoint_argument, json_option
from resumable_tasks.engine.accept import accept as accept_parked
from resumable_tasks.errors import EXIT_FAILED, UsageError
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.plan import Planning
from resumable_tasks.runners.outcome import Failure, ResultsMode
from resumable_tasks.runners.values.columns import columns_of
from resumable_tasks.runners.values.encoding import decode

_SQL_EPILOG = """\b
Exit codes:
  0  nothing is parked any more
  1  some results still do not fit
  2  no such table or column; nothing was changed
  3  SQLite: a run is at work; nothing was changed

\b
Example:
  resumable sql accept sqlite:///shop.db --table lessons --column label --convert jobs:shorter
"""


@click.command(
    epilog="\b\nExit codes:\n  0  nothing is parked any more\n  1  some results still do not fit"
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
    help="Store this column as JSON text, including values already in the table.",
)
@click.option(
    "--schema",
    metavar="MODULE:NAME",
    help="The columns and their types: a pyarrow.Schema, a pydantic model or a dataclass.",
)
@click.option(
    "--convert",
    metavar="MODULE:FUNCTION",
    help="A function that takes a parked row and returns one that fits; both are dicts.",
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

    The handler is not called. Results that still do not fit stay parked, unchanged. Give the job
    the same schema= and json_columns=, so that its next results fit as well. Modules are also
    searched for in the current folder.
    """
    reader = Reader.at(checkpoint)
    columns = columns_of(_named(schema) if schema else None, json_columns)
    converter = _named(convert) if convert else None
    if converter is None:  # which may make a column of its own
        schema_text = reader.state.schema
        table = schemas.schema_from_text(schema_text).names if schema_text else ()
        _check_columns(json_columns, reader.state.parked.values(), table)
    driver = _opened(reader, Job("", "", "one", Planning(), columns=columns))
    try:
        scheme = KeyScheme.of(reader.manifest.key)
        accepted = accept_parked(driver, scheme, _results(reader), converter)
        left = driver.parked()
        _end(driver, reader, accepted, left)
    finally:
        driver.close()
    document = {"checkpoint": reader.store.url, **_document(accepted, left)}
    listed = f"{command('failures', checkpoint, '--parked', '--jsonl')} lists them"
    output.show(as_json, document, _lines(accepted, left, listed, converted=bool(convert)))
    context.exit(EXIT_FAILED if left else 0)


# What became of a run's items, without those that have failed.
_HANDLED = ("completed", "skipped", "duplicates", "parked", "accepted")


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
        handled = sum(before.get(name, 0) for name in _HANDLED)
        # A run that has ended before its items leaves the others to the next one.
        how = "done" if handled >= before.get("total", 0) else "interrupted"
    counts = {name: value for name, value in before.items() if name != "how"}
    accepted += before.get("accepted", 0)
    driver.end(how, {**counts, "accepted": accepted, "parked": len(left)})


@sql.command("accept", epilog=_SQL_EPILOG)
@names_a_table
@click.option(
    "--where", metavar="CONDITION", help="where= of the job's SqlCheckpoint, if it has one"
)
@click.option(
    "--column", "columns", multiple=True, metavar="NAME", help="each of the job's columns="
)
@click.option(
    "--results-table", metavar="NAME", help="the job's results_table=, instead of --column"
)
@click.option(
    "--results-key", multiple=True, metavar="COLUMN", help="the job's results_key=, if it has one"
)
@click.option("--many", is_flag=True, help='for a job with results="many"')
@click.option(
    "--json-column",
    "json_columns",
    multiple=True,
    metavar="NAME",
    help="each of the job's json_columns=",
)
@click.option(
    "--convert",
    metavar="MODULE:FUNCTION",
    help="a function that takes a parked row and returns one that fits; both are dicts",
)
@json_option
@click.pass_context
def accept_in_table(
    context: click.Context,
    /,
    url: str,
    many: bool,
    json_columns: tuple[str, ...],
    convert: str | None,
    as_json: bool,
    **named: Any,
) -> None:
    """Take over the parked results of a table in the database at URL that fit now.

    The handler is not called. Results that still do not fit stay parked, unchanged. Name the
    columns or the table that the job's SqlCheckpoint writes to. For a job with shards=, use
    `resumable accept` on its directory. Modules are also searched for in the current folder.
    """
    if not (named["columns"] or named["results_table"]):
        raise UsageError("give --column or --results-table, as in the job's SqlCheckpoint")
    from resumable_tasks.checkpoint.sql.spec import require_sqlalchemy

    require_sqlalchemy()
    from resumable_tasks.checkpoint.sql import accepting

    converter = _named(convert) if convert else None
    spec = accepting.spec_of(url, **named)
    results: ResultsMode = "many" if many else "one"
    columns = columns_of(None, json_columns)
    job = Job("", "", results, Planning(key=spec.key), columns=columns)
    with accepting.opened(spec, job) as driver:
        if driver is not None and converter is None:
            _check_columns(json_columns, accepting.parked(spec, job))
        scheme = KeyScheme(spec.key)
        accepted = accept_parked(driver, scheme, results, converter) if driver is not None else 0
    left = accepting.parked(spec, job)
    document = {"table": spec.table, **_document(accepted, left)}
    listed = f"{command('sql', 'status', url, '--table', spec.table)} counts them"
    output.show(as_json, document, _lines(accepted, left, listed, converted=bool(convert)))
    context.exit(EXIT_FAILED if left else 0)


def _check_columns(
    json_columns: Sequence[str], parked: Collection[Failure], table: Iterable[str] = ()
) -> None:
    """Raise `UsageError` for a column that neither the table has nor a parked row."""
    known = dict.fromkeys(table)
    for failure in parked if json_columns else ():
        for row in failure.rows or ():
            known |= dict.fromkeys(decode(row))
    for name in json_columns if parked else ():
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"--json-column {name}: no row has such a column; nothing was changed",
                remedy=f"Did you mean {near[0]}?"
                if near
                else f"The columns are {', '.join(known)}",
            )


def _document(accepted: int, left: Sequence[Failure]) -> dict[str, Any]:
    example = {"key": left[0].key, "message": left[0].message} if left else None
    return {"accepted": accepted, "parked": len(left), "example": example}


def _lines(
    accepted: int, left: Sequence[Failure], listed: str, *, converted: bool
) -> Iterator[str]:
    if not (accepted or left):
        yield "nothing is parked"
        return
    yield f"{count(accepted, 'item')} accepted, {count(len(left), 'item')} still parked"
    if left:
        yield f"  for example: {clean(left[0].message, output.MESSAGE_CHARS)}"
        yield f"next: {listed}"
    elif converted:
        yield "next: make the handler return such rows, and run the same command again"
    else:
        yield "next: run the same command again, with the same schema= and json_columns="


def _named(text: str) -> Any:
    """The object that ``module:name`` names. Raises `UsageError`."""
    module, _, name = text.partition(":")
    if not (module and name):
        raise UsageError(
            f"{text!r} is not of the form MODULE:NAME: give a name such as jobs:Answer"
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{text} cannot be imported: {error}; nothing was changed",
            remedy="Fix the name, or run the command in the module's folder",
        ) from error
