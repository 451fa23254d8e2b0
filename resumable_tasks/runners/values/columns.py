"""The columns of results, as far as a job declares them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.frozen import frozen
from resumable_tasks.errors import BadResult

if TYPE_CHECKING:
    import pyarrow as pa


@frozen
class Columns:
    """The known columns of a job's results before there are any.

    ``schema`` has the declared columns, with their types in all partitions; None if there are
    none. A column of type null is there in all partitions, and its type is inferred. The values
    of the columns in ``json`` are kept as JSON text. ``as_rows``: the checkpoint takes rows as they
    are, since its columns have types of their own.
    """

    schema: pa.Schema | None = None
    json: frozenset[str] = frozenset()
    as_rows: bool = False

    @property
    def inferred(self) -> bool:
        """True if nothing is declared."""
        return self.schema is None and not self.json


INFERRED = Columns()
"""Nothing is declared: types are inferred from the rows."""

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


def columns_of(schema: Any, json_columns: Iterable[str] = ()) -> Columns:
    """What a job declares of its results.

    Args:
        schema: a ``pyarrow.Schema``, or a class with annotated fields, such as a pydantic model
            or a dataclass; None: nothing.
        json_columns: the names of columns to be kept as JSON text.

    Raises:
        UsageError: ``schema`` is nothing of the kind.
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
    """The values of a column as JSON text; None stays no value. Raises `BadResult`."""
    from resumable_tasks.runners.values import tables

    texts, odd = tables.json_text(name, list(values))
    for why in odd.values():
        raise BadResult(why)
    return texts
