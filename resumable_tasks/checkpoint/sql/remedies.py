"""Remedies for database errors that never go away by themselves."""

from __future__ import annotations

import re

_GRANT = (
    "GRANT this user the missing privileges: SELECT and UPDATE on the items' table; SELECT, "
    "INSERT, UPDATE and DELETE on its side tables; for `resumable sql init` the user must own the "
    "table"
)
_NO_DATABASE = "There is no such database: fix the URL, or create it"
_WHO = "Fix the user or the password, or allow this user to connect (pg_hba.conf, GRANT CONNECT)"
_READ_ONLY = "The database is read-only here: give a writable server or file"
_STATEMENT = (
    "Fix what the message names, in the table or in the arguments (where=, --column, key); if "
    "columns or tables are missing, `resumable sql init` adds them"
)

# By SQLSTATE, or by its class, the first two characters.
_BY_STATE = {
    "3D000": _NO_DATABASE,
    "3F000": "There is no such schema: fix the table's name, or create the schema",
    "25006": _READ_ONLY,
    "42501": _GRANT,
    "28": _WHO,
    "42": _STATEMENT,
}

# Drivers pass on no SQLSTATE for errors at connecting, so these are recognised by their text.
_AT_CONNECT = (
    (re.compile(r'FATAL:\s+database ".*" does not exist'), _NO_DATABASE),
    (
        re.compile(
            r'FATAL:\s+(role ".*" does not exist|role ".*" is not permitted to log in|'
            r"(password|peer|ident) authentication failed|no pg_hba\.conf entry|"
            r"pg_hba\.conf rejects|permission denied for database)|no password supplied",
            re.IGNORECASE,
        ),
        _WHO,
    ),
)
_OF_SQLITE = (
    (re.compile("file is not a database"), "Fix the URL: it names another kind of file"),
    (re.compile("attempt to write a readonly database"), _READ_ONLY),
    (
        re.compile(
            "no such |has no column|syntax error|incomplete input|unrecognized token|"
            "duplicate column name|already exists"
        ),
        _STATEMENT,
    ),
)


def remedy(error: BaseException | None, *, sqlite: bool) -> str | None:
    """The remedy for a driver's error that remains until somebody acts.

    None for errors that may pass by themselves, and for unknown errors.
    """
    if error is None:
        return None
    # The attribute's names in psycopg and psycopg2.
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if state:
        return _BY_STATE.get(state) or _BY_STATE.get(state[:2])
    said = str(error)
    for pattern, what in _OF_SQLITE if sqlite else _AT_CONNECT:
        if pattern.search(said):
            return what
    return None
