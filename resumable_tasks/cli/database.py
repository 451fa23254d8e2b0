"""The commands about a checkpoint in a database's table: `sql init` and `sql status`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from resumable_tasks.base.text import clean, count, duration
from resumable_tasks.checkpoint.directory.reader import EXIT_CODES
from resumable_tasks.cli import output
from resumable_tasks.cli.look import json_option

if TYPE_CHECKING:
    from resumable_tasks.checkpoint.sql.status import TableStatus

_EPILOG = """\b
Exit codes:
  0   printed or, with --apply, done; or there was nothing to do
  2   no such table or column, no usable key, or no permission
  75  the database failed: run the command again

\b
Example:
  resumable sql init sqlite:///shop.db --table lessons --key id --column label
"""


_STATUS_EPILOG = """\b
Exit codes:
  0   done         all rows are done
  1   failed       all are done except failed or parked rows, more than tolerated
  2   usage        no such table, or it is not prepared
  3   running      a run is at work
  5   spent        rows are left, and the last run has used up its budget
  75  incomplete   rows are left: run the job

\b
Example:
  resumable sql status sqlite:///shop.db --table lessons
"""


@click.group(epilog="\b\nExample:\n  resumable sql init sqlite:///shop.db --table lessons --key id")
def sql() -> None:
    """Prepare and inspect a database table whose rows are the items of a job."""


def names_a_table(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and options that say which table."""
    for each in (
        click.option(
            "--done",
            default="processed_at",
            show_default=True,
            metavar="COLUMN",
            help="column that is NULL until a row is done",
        ),
        click.option(
            "--key",
            multiple=True,
            metavar="COLUMN",
            help="column that identifies a row; by default the primary key",
        ),
        click.option(
            "--table", required=True, metavar="NAME", help="table whose rows are the items"
        ),
        click.argument("url"),
    ):
        command = each(command)
    return command


@sql.command(epilog=_EPILOG)
@names_a_table
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME[:TYPE]",
    help="column for results; of type TEXT by default",
)
@click.option("--apply", is_flag=True, help="run the statements instead of only printing them")
def init(
    url: str, table: str, key: tuple[str, ...], done: str, columns: tuple[str, ...], apply: bool
) -> None:
    """Print the SQL that prepares a table of the database at URL.

    The SQL adds missing columns and tables, and an index of the rows left to do; it drops no data.
    --apply runs it: all or nothing, except that PostgreSQL creates the index separately at the end,
    while the table stays in use. URL is a SQLAlchemy URL, such as postgresql://user@host/name or
    sqlite:///file.db.
    """
    from resumable_tasks.checkpoint.sql.place import SqlCheckpoint
    from resumable_tasks.checkpoint.sql.spec import require_sqlalchemy

    require_sqlalchemy()
    from resumable_tasks.checkpoint.sql import init as preparing
    from resumable_tasks.checkpoint.sql.database import Database
    from resumable_tasks.checkpoint.sql.tables import key_of

    types = {name: kind for name, _, kind in (each.partition(":") for each in columns)}
    database = Database(url)
    try:
        names = key_of(database, table, key)
        spec = SqlCheckpoint(url, table=table, key=names, done=done, columns=tuple(types))
        given = {name: kind for name, kind in types.items() if kind}
        statements = preparing.statements(database, spec, given)
        if apply:
            preparing.apply(database, statements)
    finally:
        database.close()
    output.lines(f"{each};" for each in statements)
    if not statements:
        output.note(f"table {table} is already prepared: nothing to do")
    elif apply:
        output.note("done")
    else:
        output.note("nothing was changed: --apply runs these statements")


@sql.command(epilog=_STATUS_EPILOG)
@names_a_table
@click.option(
    "--where", metavar="CONDITION", help="where= of the job's SqlCheckpoint, if it has one"
)
@json_option
@click.pass_context
def status(
    context: click.Context,
    url: str,
    table: str,
    key: tuple[str, ...],
    done: str,
    where: str | None,
    as_json: bool,
) -> None:
    """Show the progress of a table in the database at URL, and which runs are at work on it.

    Only reads. For a job with shards=, `resumable status` of its directory shows more.
    """
    from resumable_tasks.checkpoint.sql.place import SqlCheckpoint
    from resumable_tasks.checkpoint.sql.spec import require_sqlalchemy

    require_sqlalchemy()
    from resumable_tasks.checkpoint.sql.database import Database
    from resumable_tasks.checkpoint.sql.status import table_status
    from resumable_tasks.checkpoint.sql.tables import key_of

    database = Database(url)
    try:
        names = key_of(database, table, key)
        found = table_status(
            database, SqlCheckpoint(url, table=table, key=names, done=done, where=where)
        )
    finally:
        database.close()
    code = EXIT_CODES[found.status]
    output.show(as_json, {**asdict(found), "exit_code": code}, _status_lines(found))
    context.exit(code)


def _status_lines(found: TableStatus) -> Iterator[str]:
    name = clean(found.job or "no run yet")
    yield name + (f" (version {clean(found.version, 80)})" if found.version else "")
    yield f"  table        {clean(found.table)}"
    yield f"  status       {found.status}"
    yield f"  completed    {found.completed:,} of {count(found.rows, 'row')}"
    kinds = ", ".join(f"{n:,} × {clean(kind, 80)}" for kind, n in found.errors.items())
    yield f"  failed       {f'{found.failed:,}: {kinds}' if kinds else 'none'}"
    if found.parked:
        yield f"  parked       {count(found.parked, 'row')}: kept, not in the table yet"
    yield f"  left         {found.left:,}"
    for run in found.running:
        yield f"  at work      {_run(run)}, for {duration(run['seconds'])}"
    if found.running:
        yield f"  claimed      {count(found.claimed, 'row')}"
    elif found.last_run is not None:
        how = found.last_run["ended"] or "unknown: it died, or has no heartbeat"
        yield f"  last run     {_run(found.last_run)}: {clean(how, 80)}"


def _run(run: dict[str, Any]) -> str:
    return f"{clean(run['run'], 40)} on {clean(run['host'], 80)} (pid {run['pid']})"
