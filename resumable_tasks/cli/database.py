"""The commands about a checkpoint in a database's table: `sql init`."""

from __future__ import annotations

import click

from resumable_tasks.cli import output

_EPILOG = """\b
Exit codes:
  0   printed or, with --apply, done; or there was nothing to do
  2   no such table or column, or the key is none; nothing was changed
  75  the database did not do it; nothing was changed

\b
Example:
  resumable sql init sqlite:///shop.db --table lessons --key id --column label
"""


@click.group(epilog="\b\nExample:\n  resumable sql init sqlite:///shop.db --table lessons --key id")
def sql() -> None:
    """Prepare a database table whose rows are the items of a job."""


@sql.command(epilog=_EPILOG)
@click.argument("url")
@click.option("--table", required=True, metavar="NAME", help="whose rows are the items")
@click.option("--key", required=True, multiple=True, metavar="COLUMN", help="that names a row")
@click.option(
    "--done",
    default="processed_at",
    show_default=True,
    metavar="COLUMN",
    help="that is to be NULL while a row is to be handled",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME[:TYPE]",
    help="a column for results; of type TEXT unless said otherwise",
)
@click.option("--apply", is_flag=True, help="run the statements, and not only print them")
def init(
    url: str, table: str, key: tuple[str, ...], done: str, columns: tuple[str, ...], apply: bool
) -> None:
    """Print the SQL that prepares a table of the database at URL.

    It adds the columns and tables that are missing, and an index of what is left to do; nothing is
    dropped. With --apply it is run, in one transaction. URL is SQLAlchemy's, such as
    postgresql://user@host/name or sqlite:///file.db.
    """
    from resumable_tasks.sql import init as preparing
    from resumable_tasks.sql.database import Database
    from resumable_tasks.sql.spec import SqlCheckpoint

    types = {name: kind for name, _, kind in (each.partition(":") for each in columns)}
    one_or_more = key[0] if len(key) == 1 else key
    spec = SqlCheckpoint(url, table=table, key=one_or_more, done=done, columns=tuple(types))
    database = Database(url)
    try:
        given = {name: kind for name, kind in types.items() if kind}
        statements = preparing.statements(database, spec, given)
        if apply:
            preparing.apply(database, statements)
    finally:
        database.close()
    output.lines(f"{each};" for each in statements)
    if not statements:
        output.note(f"table {table} is prepared: there is nothing to do")
    elif apply:
        output.note("done")
    else:
        output.note("nothing was changed: --apply runs these statements")
