"""A row that the database gives and Python cannot hold: which one it is, and which column.

Such are `infinity` as a date of PostgreSQL, and in SQLite, which checks no types, anything in a
column of dates or numbers. One of them would end every run in the same place, so it is named.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from resumable_tasks.checkpoint.sql.database import Database, all_rows, first_line
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.errors import StoreError, UsageError
from resumable_tasks.items.keys import shown


def unreadable(database: Database, tables: Tables, page: sa.Select[Any]) -> UsageError | None:
    """The error that names the first row of this page that cannot be read; None if each can.

    Raises what the database raises if the keys alone cannot be read either.
    """
    with database.reading() as connection:
        found = connection.execute(page.with_only_columns(*tables.key))
        keys = [tables.key_of(row) for row in found]
    for key in keys:
        if _objection(database, tables, key, list(tables.items.c)) is None:
            continue
        for column in tables.items.c:
            said = _objection(database, tables, key, [column])
            if said is not None:
                return UsageError(
                    f"row {shown(key)} of table {tables.spec.table} cannot be read, because of "
                    f"column {column.name!r}: {said}. Fix the value, or exclude such rows by where="
                )
    return None


def _objection(
    database: Database, tables: Tables, key: Any, columns: list[sa.Column[Any]]
) -> str | None:
    """Why these columns of the row cannot be read; None if they can."""
    query = sa.select(*columns).where(tables.is_in(tables.items, [key]))
    try:
        with database.reading() as connection:
            all_rows(connection, query)
    except StoreError as error:
        if is_of_the_driver(error):
            return first_line(error.__cause__ or error)
        raise  # such as a connection that is lost: nothing is wrong with the row
    except (ArithmeticError, TypeError, ValueError) as error:
        return str(error)
    return None


def is_of_the_driver(error: StoreError) -> bool:
    """True if the server sent the value and the driver did not understand it."""
    cause = error.__cause__
    if isinstance(cause, sa.exc.DataError):
        return getattr(cause.orig, "sqlstate", None) is None
    return "Could not decode to UTF-8" in str(cause)
