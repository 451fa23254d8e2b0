"""Types of columns: which Parquet keeps, and which are only a library's way to hold others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
