"""Finds the row and column of a value that the database returns and Python cannot represent.

Examples are PostgreSQL's date `infinity`, and any wrong value in a date or number column of SQLite,
which checks no types. Such a row would end every run at the same place, so the error names it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from resumable_tasks.checkpoint.sql.database import Database, all_rows, first_line
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.errors import StoreError, UsageError
from resumable_tasks.items.keys import shown


def unreadable(database: Database, tables: Tables, page: sa.Select[Any]) -> UsageError | None:
    """The error that names the first unreadable row of this page; None if all can be read.

    Raises the database's error if even the keys cannot be read.
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
                    f"column {column.name!r}: {said}. Fix the value, or exclude such rows with "
                    "where="
                )
    return None


def _objection(
    database: Database, tables: Tables, key: Any, columns: list[sa.Column[Any]]
) -> str | None:
    """The reason why these columns of the row cannot be read; None if they can."""
    query = sa.select(*columns).where(tables.is_in(tables.items, [key]))
    try:
        with database.reading() as connection:
            all_rows(connection, query)
    except StoreError as error:
        if is_of_the_driver(error):
            return first_line(error.__cause__ or error)
        raise  # another error, such as a lost connection: the row is not at fault
    except (ArithmeticError, TypeError, ValueError) as error:
        return str(error)
    return None


def is_of_the_driver(error: StoreError) -> bool:
    """True if the server sent the value and the driver could not convert it."""
    cause = error.__cause__
    if isinstance(cause, sa.exc.DataError):
        return getattr(cause.orig, "sqlstate", None) is None
    return "Could not decode to UTF-8" in str(cause)
