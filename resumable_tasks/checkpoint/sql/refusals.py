"""Whose fault it is that the database refuses a statement: the row's, a lock's, or its own.

A row is refused by its values, by constraints and by triggers, and triggers may raise any code.
So what is not the row's fault is the list, and the list is short.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

# By SQLSTATE, a whole one or a class: the connection, the transaction, who may do what, resources,
# the operator, the system, settings, data that is corrupt.
_SERVERS_OWN = {
    *("08", "25", "28", "3D", "40", "53", "57", "58", "F0"),
    *("42501", "55006", "55P03", "XX001", "XX002"),
}
# A lock that was waited for too long, two that wait for each other, two that exclude each other.
_LOCKS = {"55P03", "40P01", "40001"}
# The connection; a transaction or a session that was silent for too long; a server that is told to
# end, that ends since it has crashed, or that begins; one that has no connection left.
_LOST = {"08", "25P03", "25P04", "57P01", "57P02", "57P03", "57P05", "53300"}
# The functions of PostgreSQL that say what a trigger, or a policy, has against a row.
_OF_A_ROW = {"exec_stmt_raise", "ExecWithCheckOptions"}
_SQLITES_OWN = (
    *("BUSY", "LOCKED", "PROTOCOL", "FULL", "IOERR", "NOMEM", "READONLY", "CANTOPEN", "CORRUPT"),
    *("NOTADB", "PERM", "AUTH", "INTERRUPT", "NOLFS", "MISUSE"),
)


def is_about_a_row(error: sa.exc.SQLAlchemyError) -> bool:
    """True if the database, or its driver, refused a row, and not the work as such."""
    if not isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, sa.exc.StatementError)
    if error.connection_invalidated:
        return False
    said: Any = error.orig
    name = getattr(said, "sqlite_errorname", None)
    if name is not None:
        return not name.removeprefix("SQLITE_").startswith(_SQLITES_OWN)
    state = sqlstate(error)
    if state is None:  # of the driver, before it has sent anything
        return not isinstance(error, (sa.exc.OperationalError, sa.exc.InternalError))
    if _function(said) in _OF_A_ROW:
        return True
    return not {state, state[:2]} & _SERVERS_OWN


def is_about_a_lock(error: sa.exc.SQLAlchemyError) -> bool:
    """True if another has what the statement wants, and nothing else is wrong."""
    said: Any = getattr(error, "orig", None)
    if getattr(said, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return True
    return sqlstate(error) in _LOCKS and _function(said) not in _OF_A_ROW


def is_about_the_connection(error: sa.exc.SQLAlchemyError) -> bool:
    """True if the connection was lost, or none could be made, and a new one may do better."""
    said: Any = getattr(error, "orig", None)
    if not isinstance(error, sa.exc.DBAPIError) or type(said).__module__ == "sqlite3":
        return False
    state = sqlstate(error)
    if error.connection_invalidated:
        return True
    if state is None:  # of the driver, as long as there is nobody who could send one
        return isinstance(error, sa.exc.OperationalError)
    return bool({state, state[:2]} & _LOST) and _function(said) not in _OF_A_ROW


def is_lost(error: BaseException) -> bool:
    """True if an error of ours is that the connection was lost, or none could be made."""
    cause = error.__cause__
    return isinstance(cause, sa.exc.SQLAlchemyError) and is_about_the_connection(cause)


def is_locked(error: BaseException) -> bool:
    """True if an error of ours is that another has a lock."""
    cause = error.__cause__
    return isinstance(cause, sa.exc.SQLAlchemyError) and is_about_a_lock(cause)


def sqlstate(error: sa.exc.SQLAlchemyError) -> str | None:
    """PostgreSQL's code for what it refused; None if there is none."""
    said = getattr(error, "orig", None)
    found: str | None = getattr(said, "sqlstate", None) or getattr(said, "pgcode", None)
    return found


def _function(said: Any) -> str | None:
    """The function of the server that raised the error."""
    found: str | None = getattr(getattr(said, "diag", None), "source_function", None)
    return found
