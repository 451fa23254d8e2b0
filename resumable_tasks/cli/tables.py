"""The commands that look closely at a database's table: `sql show` at a row, `sql history`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from resumable_tasks.base.text import clean, count
from resumable_tasks.cli import output
from resumable_tasks.cli.database import names_a_table, sql
from resumable_tasks.cli.failed import failure_fields
from resumable_tasks.cli.look import json_option
from resumable_tasks.cli.show import row_lines
from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys

if TYPE_CHECKING:
    from resumable_tasks.checkpoint.sql.looking import Looked

T = TypeVar("T")


def _looking(
    url: str, table: str, key: tuple[str, ...], done: str, look: Callable[[Any, Any], T]
) -> T:
    """What a look at the database finds for this table."""
    from resumable_tasks.checkpoint.sql.place import SqlCheckpoint
    from resumable_tasks.checkpoint.sql.spec import require_sqlalchemy

    require_sqlalchemy()
    from resumable_tasks.checkpoint.sql.database import Database
    from resumable_tasks.checkpoint.sql.tables import key_of

    database = Database(url)
    try:
        names = key_of(database, table, key)
        return look(database, SqlCheckpoint(url, table=table, key=names, done=done))
    finally:
        database.close()


@sql.command(
    epilog="\b\nExit codes:\n  0  shown, whatever the row's status is"
    "\n  2  no such row, or the table is not prepared\n"
    "\n\b\nExample:\n  resumable sql show sqlite:///shop.db 17 --table lessons"
)
@names_a_table
@click.argument("row")
@json_option
def show(url: str, row: str, table: str, key: tuple[str, ...], done: str, as_json: bool) -> None:
    """Show one ROW of a table in the database at URL, by its key: its columns or its error.

    A table does not record which run did a row, after how many attempts, and at what cost.
    """

    def looked(database: Any, spec: Any) -> Looked | None:
        from resumable_tasks.checkpoint.sql.looking import look

        return look(database, spec, row)

    found = _looking(url, table, key, done, looked)
    if found is None:
        raise UsageError(
            f"table {clean(table, 80)} has no row with key {keys.shown(row)}",
            remedy='Give the value of its column; of several columns, JSON such as ["de",17]',
        )
    document = {
        "table": table,
        "key": found.key,
        "status": found.status,
        "claimed": found.claimed,
        "run": found.failed_in,
        "failure": failure_fields(found.failure, traceback=True) if found.failure else None,
        "row": dict(found.row),
    }
    output.show(as_json, document, _lines(found, table))


def _lines(found: Looked, table: str) -> Iterator[str]:
    failure = found.failure
    yield output.bold(keys.shown(found.key))
    yield f"  status       {output.status_word(found.status)}"
    yield f"  table        {clean(table, 80)}"
    if found.claimed:
        yield f"  claimed by   run {clean(found.claimed, 40)}"
    if failure is not None:
        error = clean(f"{failure.error}: {failure.message}", output.MESSAGE_CHARS)
        yield f"  when         {output.when(failure.time)}"
        yield f"  by           run {clean(found.failed_in or '?', 40)}"
        yield f"  batch        {clean(failure.batch, 40)}"
        yield f"  attempts     {failure.attempts}"
        yield f"  error        {error}"
    yield from row_lines([dict(found.row)])
    if failure is not None and failure.traceback:
        yield from output.traceback_lines(failure.traceback)
    if failure is None:
        yield "not recorded in a table: the run, the attempts and the cost"


@sql.command(
    epilog="\b\nExit codes:\n  0  shown, however the runs ended\n  2  no such table, or it is not "
    "prepared\n\n\b\nExample:\n  resumable sql history sqlite:///shop.db --table lessons"
)
@names_a_table
@json_option
@output.csv_option
def history(
    url: str, table: str, key: tuple[str, ...], done: str, as_json: bool, as_csv: bool
) -> None:
    """List the runs that were at work on a table in the database at URL.

    A table does not record what each run did, when it ended, and at what cost.
    """
    output.refuse_both(as_json, as_csv)

    def looked(database: Any, spec: Any) -> list[dict[str, Any]]:
        from resumable_tasks.checkpoint.sql.looking import history

        return history(database, spec)

    found = _looking(url, table, key, done, looked)
    if as_csv:
        output.write_csv(
            ("number", "run", "job", "version", "host", "pid", "began", "ended"), found
        )
        return
    output.show(as_json, found, _history(found), whole=True)


def _history(found: list[dict[str, Any]]) -> Iterator[str]:
    if not found:
        yield "no run has started yet"
        return
    rows = (
        (
            str(run["number"]),
            output.moment(run["began"])[:16],
            output.status_word(clean(run["ended"] or "?", 20)),
            clean(run["run"], 40),
            clean(run["host"], 40),
        )
        for run in found
    )
    yield from output.table(("NUMBER", "BEGAN", "ENDED", "RUN", "WHERE"), rows, right="NUMBER")
    yield (
        f"{count(len(found), 'run')}; a table does not record what each did: `sql status` counts "
        "rows"
    )
