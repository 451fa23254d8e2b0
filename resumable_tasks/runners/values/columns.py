"""The columns of results that a job declares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.frozen import frozen
from resumable_tasks.errors import BadResult

if TYPE_CHECKING:
    import pyarrow as pa


@frozen
class Columns:
    """The columns of a job's results that are known before there are any rows.

    ``schema``: the declared columns, which have these types in all partitions; None if nothing is
    declared. A column of type null exists in all partitions, but its type is inferred. ``json``:
    the columns whose values are stored as JSON text. ``as_rows``: the checkpoint takes rows as
    dicts, because its columns have their own types.
    """

    schema: pa.Schema | None = None
    json: frozenset[str] = frozenset()
    as_rows: bool = False

    @property
    def inferred(self) -> bool:
        """True if nothing is declared."""
        return self.schema is None and not self.json


INFERRED = Columns()
"""No declared columns: types are inferred from the rows."""

JSON_MARK = b"resumable_tasks"
_JSON = {JSON_MARK: b"json"}


def json_field(name: str) -> pa.Field:
    """Return the field of a column of JSON text, marked as such in its metadata."""
    import pyarrow as pa

    return pa.field(name, pa.string(), metadata=_JSON)


def json_names(schema: pa.Schema | None) -> frozenset[str]:
    """Return the names of the JSON text columns in a schema of results."""
    fields = () if schema is None else schema
    return frozenset(field.name for field in fields if (field.metadata or {}) == _JSON)


def columns_of(schema: Any, json_columns: Iterable[str] = ()) -> Columns:
    """Return the columns that a job declares.

    Args:
        schema: a ``pyarrow.Schema``, or a class with annotated fields, such as a pydantic model
            or a dataclass; None: nothing.
        json_columns: the names of columns to be stored as JSON text.

    Raises:
        UsageError: ``schema`` is something else.
    """
    if schema is None:
        return Columns(json=frozenset(json_columns))
    from resumable_tasks.runners.values import declared

    found = declared.schema_of(schema)
    of_json = frozenset(json_columns) | json_names(found)
    import pyarrow as pa

    fields = [json_field(field.name) if field.name in of_json else field for field in found]
    return Columns(pa.schema(fields), of_json)


def json_text(name: str, values: Iterable[Any]) -> list[str | None]:
    """Return the values of a column as JSON text; None stays None. Raises `BadResult`."""
    from resumable_tasks.runners.values import tables

    texts, odd = tables.json_text(name, list(values))
    for why in odd.values():
        raise BadResult(why)
    return texts
