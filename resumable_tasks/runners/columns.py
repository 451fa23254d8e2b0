"""Types of columns: which Parquet keeps, and which are only a library's way to hold others."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import BadResult, UsageError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Columns:
    """What is known of the columns of a job's results before there are any.

    ``schema`` has the declared columns, with their types in all partitions; None if there are
    none. The values of the columns in ``json`` are kept as JSON text.
    """

    schema: pa.Schema | None = None
    json: frozenset[str] = frozenset()

    @property
    def inferred(self) -> bool:
        """True if nothing is declared."""
        return self.schema is None and not self.json


JSON_MARK = b"resumable_tasks"
_JSON = {JSON_MARK: b"json"}


def json_field(name: str) -> pa.Field:
    """The field of a column of JSON text, which says in its metadata that it is one."""
    import pyarrow as pa

    return pa.field(name, pa.string(), metadata=_JSON)


def json_names(schema: pa.Schema | None) -> frozenset[str]:
    """The columns of JSON text in a schema of results."""
    fields = () if schema is None else schema
    return frozenset(field.name for field in fields if (field.metadata or {}) == _JSON)


def json_text(name: str, values: Iterable[Any]) -> list[str | None]:
    """The values of a column as JSON text; None stays no value. Raises `BadResult`."""
    try:
        return [None if value is None else json.dumps(value) for value in values]
    except (TypeError, ValueError, RecursionError) as error:
        raise BadResult(f"column {name!r} of the handler's result is no JSON: {error}") from error


def columns_of(schema: Any, json_columns: Iterable[str] = ()) -> Columns:
    """What a job declares of its results.

    Args:
        schema: a ``pyarrow.Schema``; None: nothing.
        json_columns: the names of columns to be kept as JSON text.

    Raises:
        UsageError: ``schema`` is nothing of the kind.
    """
    if schema is None:
        return Columns(json=frozenset(json_columns))
    import pyarrow as pa

    if not isinstance(schema, pa.Schema):
        raise UsageError(f"schema={schema!r} is no pyarrow.Schema")
    of_json = frozenset(json_columns) | json_names(schema)
    fields = [json_field(field.name) if field.name in of_json else field for field in schema]
    return Columns(pa.schema(fields), of_json)


INFERRED = Columns()
"""Nothing is declared: types are inferred from the rows."""


def normalise(table: pa.Table) -> pa.Table:
    """The table with every column of a type that Parquet keeps and that unifies with its kin.

    Categories become their values, string views strings: which of them a library produced says
    nothing of the result.
    """
    import pyarrow as pa

    plain = [field.with_type(_plain(field.type)) for field in table.schema]
    schema = pa.schema(plain)
    return table if schema.equals(table.schema) else table.cast(schema)


def _plain(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if kind == pa.string_view():
        return pa.string()
    if kind == pa.binary_view():
        return pa.binary()
    return kind


def unwritable(kind: pa.DataType) -> bool:
    """True if a type holds, at any depth, a struct without fields, which Parquet cannot write."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(unwritable(field.type) for field in kind)
    return hasattr(kind, "value_type") and unwritable(kind.value_type)
