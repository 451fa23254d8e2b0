"""Decides why the database refused a statement: the row, a lock, the connection, or itself.

A row can be refused because of its values, a constraint or a trigger, and triggers may raise any
code. So this module lists the errors that are not the row's fault; that list is short.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

# SQLSTATEs or their classes: connection, transaction, permissions, resources, operator, system,
# settings, corrupt data.
_SERVERS_OWN = {
    *("08", "25", "28", "3D", "40", "53", "57", "58", "F0"),
    *("42501", "55006", "55P03", "XX001", "XX002"),
}
# A lock timeout, a deadlock, a serialization failure.
_LOCKS = {"55P03", "40P01", "40001"}
# The connection; an idle transaction or session that was ended; a server that shuts down, crashed
# or starts up; a server without free connections.
_LOST = {"08", "25P03", "25P04", "57P01", "57P02", "57P03", "57P05", "53300"}
# The functions of PostgreSQL that report the refusal of a row by a trigger or a policy.
_OF_A_ROW = {"exec_stmt_raise", "ExecWithCheckOptions"}
_SQLITES_OWN = (
    *("BUSY", "LOCKED", "PROTOCOL", "FULL", "IOERR", "NOMEM", "READONLY", "CANTOPEN", "CORRUPT"),
    *("NOTADB", "PERM", "AUTH", "INTERRUPT", "NOLFS", "MISUSE"),
)


def is_about_a_row(error: sa.exc.SQLAlchemyError) -> bool:
    """True if the database or its driver refused a row, and would accept other rows."""
    if not isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, sa.exc.StatementError)
    if error.connection_invalidated:
        return False
    said: Any = error.orig
    name = getattr(said, "sqlite_errorname", None)
    if name is not None:
        return not name.removeprefix("SQLITE_").startswith(_SQLITES_OWN)
    state = sqlstate(error)
    if state is None:  # raised by the driver before it sent anything
        return not isinstance(error, (sa.exc.OperationalError, sa.exc.InternalError))
    if _function(said) in _OF_A_ROW:
        return True
    return not {state, state[:2]} & _SERVERS_OWN


def is_about_a_lock(error: sa.exc.SQLAlchemyError) -> bool:
    """True if the only problem is a lock that another session holds."""
    said: Any = getattr(error, "orig", None)
    if getattr(said, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return True
    return sqlstate(error) in _LOCKS and _function(said) not in _OF_A_ROW


def is_about_the_connection(error: sa.exc.SQLAlchemyError) -> bool:
    """True if the connection was lost or could not be made, and another try may succeed."""
    said: Any = getattr(error, "orig", None)
    if not isinstance(error, sa.exc.DBAPIError) or type(said).__module__ == "sqlite3":
        return False
    state = sqlstate(error)
    if error.connection_invalidated:
        return True
    if state is None:  # raised by the driver while no server answers
        return isinstance(error, sa.exc.OperationalError)
    return bool({state, state[:2]} & _LOST) and _function(said) not in _OF_A_ROW


def is_lost(error: BaseException) -> bool:
    """True if this error of ours means that the connection was lost or could not be made."""
    cause = error.__cause__
    return isinstance(cause, sa.exc.SQLAlchemyError) and is_about_the_connection(cause)


def is_locked(error: BaseException) -> bool:
    """True if this error of ours means that another session holds a lock."""
    cause = error.__cause__
    return isinstance(cause, sa.exc.SQLAlchemyError) and is_about_a_lock(cause)


def sqlstate(error: sa.exc.SQLAlchemyError) -> str | None:
    """PostgreSQL's error code; None if there is none."""
    said = getattr(error, "orig", None)
    found: str | None = getattr(said, "sqlstate", None) or getattr(said, "pgcode", None)
    return found


def _function(said: Any) -> str | None:
    """The server's function that raised the error; None if unknown."""
    found: str | None = getattr(getattr(said, "diag", None), "source_function", None)
    return found
