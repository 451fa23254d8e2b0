"""Column types for SQLite that keep values which SQLAlchemy's own types would cut or refuse."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite


class _Moment(sqlite.DATETIME):
    """Keeps a moment with an offset, in UTC; SQLAlchemy's type drops the offset."""

    cache_ok = True

    def bind_processor(self, dialect: sa.Dialect) -> Callable[[Any], Any]:
        naive = super().bind_processor(dialect)
        assert naive is not None

        def written(value: Any) -> Any:
            if isinstance(value, datetime) and value.tzinfo is not None:
                return f"{naive(value.astimezone(UTC).replace(tzinfo=None))}+00:00"
            return naive(value)

        return written


class _Plain(sa.TypeDecorator[Any]):
    """Keeps values as text, for any column whose type does not define their form."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        if isinstance(value, datetime):
            return value.isoformat(" ")
        if isinstance(value, (date, time)):
            return value.isoformat()
        return str(value) if isinstance(value, (Decimal, UUID)) else value


def for_sqlite(kind: Any) -> Any:
    """The type to use for writing values to a column of this type."""
    if isinstance(kind, sa.DateTime):
        return _Moment()  # type: ignore[no-untyped-call]
    own = (sa.JSON, sa.Numeric, sa.Date, sa.Time, sa.Boolean, sa.Uuid)
    return kind if isinstance(kind, own) else _Plain()
