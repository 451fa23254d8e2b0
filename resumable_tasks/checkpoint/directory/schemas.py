"""The one schema of all shards: how it widens, and checks that no value changes by that."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import ResultConflict
from resumable_tasks.runners.values.columns import (
    JSON_MARK,
    Columns,
    json_field,
    json_names,
    json_text,
)

if TYPE_CHECKING:
    import pyarrow as pa


class ResultSchema:
    """The schema of all results of a checkpoint, which widens from commit to commit."""

    def __init__(self, text: str | None, declared: pa.Schema | None = None) -> None:
        """``text`` is the journal's schema, None before the first row; ``declared`` the job's."""
        self._text = text
        self._declared = declared
        self._current: pa.Schema | None = None
        # The schema that `text` encodes, once a commit has recorded it.
        self._recorded: pa.Schema | None = None
        # Column types already found impossible; remembered since the check reads all rows.
        self._fixed: set[tuple[Any, ...]] = set()

    @property
    def current(self) -> pa.Schema | None:
        """The columns of the rows and their types; None if nothing is known."""
        if self._current is None:
            stored = schema_from_text(self._text) if self._text else None
            self._current = with_columns(stored, self._declared)
        return self._current

    def take(self, schema: pa.Schema | None) -> None:
        """Make this the current schema, after a commit has recorded it."""
        if schema is not None and schema is not self._recorded:
            self._text = schema_to_text(schema)
            self._current = self._recorded = schema

    def text_if_new(self, schema: pa.Schema | None) -> str | None:
        """The schema as text for a record, if it differs from the current one; else None."""
        if schema is None or schema is self._recorded:
            return None
        text = schema_to_text(schema)
        return None if text == self._text else text

    def widened(
        self,
        current: pa.Schema | None,
        new: pa.Schema,
        batch: str,
        rows: Callable[[], pa.Table],
        there: Iterable[pa.Table],
    ) -> pa.Schema:
        """The schema that holds both without changing any value.

        ``rows`` returns the new rows, ``there`` yields all existing ones. Raises `ResultConflict`
        with the column, both types and the batch.
        """
        unified = unify(current, new, batch)
        if current is None or (unified.equals(current) and unified.equals(new)):
            return unified
        new_rows = (rows() for _ in range(1))
        unified = self._kept(unified, (current, new), changed(new, unified), new_rows, batch)
        names = changed(current, unified)
        for name in names:
            known = (name, current.field(name).type, new.field(name).type)
            if self._is_declared(name) or known in self._fixed:
                raise conflict(*known, batch)
        return self._kept(unified, (current, new), names, there, batch)

    def _kept(
        self,
        unified: pa.Schema,
        of: tuple[pa.Schema, pa.Schema],
        names: list[str],
        tables: Iterable[pa.Table],
        batch: str,
    ) -> pa.Schema:
        """The unified schema, checked to change no value of these columns in these tables.

        Structures whose values would change become JSON. Raises `ResultConflict` for other columns.
        """
        from resumable_tasks.runners.values import jsontype, types

        names = [name for name in names if not jsontype.is_json(unified.field(name).type)]
        for table in tables if names else ():
            for name in [name for name in names if not keeps(table, name, unified)]:
                # Both schemas have a type for a column that changes.
                before, now = (some.field(name) for some in of)
                if not types.is_structure(before.type):
                    known = (name, before.type, now.type)
                    self._fixed.add(known)
                    raise conflict(*known, batch)
                names.remove(name)
                at = unified.get_field_index(name)
                unified = unified.set(at, now.with_type(jsontype.JSON))
        return unified

    def _is_declared(self, name: str) -> bool:
        """True if the job declares the column with a type; null leaves the type open."""
        import pyarrow as pa

        if self._declared is None or name not in self._declared.names:
            return False
        return not pa.types.is_null(self._declared.field(name).type)


def unify(current: pa.Schema | None, new: pa.Schema, batch: str) -> pa.Schema:
    """The schema that holds both, column by column (`resumable_tasks.runners.values.types.join`).

    `keeps` must then check that no value changes. Raises `ResultConflict` with the column, both
    types and the batch if there is no such schema.
    """
    if current is None or current.equals(new):
        return new
    import pyarrow as pa

    _refuse_other_text(current, new, batch)
    fields = {field.name: field for field in current}
    for field in new:
        before = fields.setdefault(field.name, field)
        kind = _joined(before.type, field.type)
        if kind is None:
            raise conflict(field.name, before.type, field.type, batch)
        json = field.name in json_names(pa.schema([before, field]))
        fields[field.name] = json_field(field.name) if json else pa.field(field.name, kind)
    return pa.schema(list(fields.values()))


def _joined(before: pa.DataType, now: pa.DataType) -> pa.DataType | None:
    import pyarrow as pa

    from resumable_tasks.runners.values import types

    found = types.join(before, now)
    if found is None and not (types.is_structure(before) or types.is_structure(now)):
        # A column of nothing but NaN has no real values, so it takes any type.
        for kind, other in ((before, now), (now, before)):
            if pa.types.is_floating(kind):
                return other
    return found


def _refuse_other_text(current: pa.Schema, new: pa.Schema, batch: str) -> None:
    """Refuse to mix JSON text and other text in a column, though Arrow gives both one type."""
    import pyarrow as pa

    for name in json_names(current) ^ json_names(new):
        if name in current.names and name in new.names:
            before, now = current.field(name), new.field(name)
            if not (pa.types.is_null(before.type) or pa.types.is_null(now.type)):
                raise conflict(name, before, now, batch)


def retyped(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The table converted to the types of ``wanted``, without changing any value.

    In a column that becomes JSON text, each value becomes the text that `json.dumps` makes. Raises
    `ResultConflict` with the column and both types.
    """
    import pyarrow as pa

    from resumable_tasks.runners.values import types

    json = json_names(wanted) - json_names(table.schema)
    fields = [field for field in wanted if field.name in table.column_names]
    columns = []
    for field in fields:
        column = table.column(field.name)
        if field.name in json:
            columns.append(pa.array(json_text(field.name, column.to_pylist()), pa.string()))
        # `join` is asked too, because Arrow casts integers to text or times and back, which `keeps`
        # alone would accept.
        elif types.join(column.type, field.type) is not None and keeps(table, field.name, wanted):
            columns.append(cast_column(column, field.type))
        else:
            raise ResultConflict(
                f"column {field.name!r} of the results is {column.type} in the stored rows, and "
                f"{field.type} cannot hold all of their values unchanged"
            )
    return pa.table(columns, schema=pa.schema(fields))


def declared(stored: pa.Schema | None, columns: Columns) -> pa.Schema | None:
    """The columns whose types the job declares; JSON columns only if they are stored too."""
    import pyarrow as pa

    there = stored.names if stored is not None else ()
    # Nulls are checked where rows become columns, not here.
    fields = {
        field.name: field.with_nullable(True)
        for field in columns.schema or ()
        if not (pa.types.is_null(field.type) and field.name in there)
    }
    fields |= {name: json_field(name) for name in columns.json if name in there}
    return pa.schema(list(fields.values())) if fields else None


def differ(before: pa.Schema, after: pa.Schema) -> bool:
    """True if a column changes its type or becomes JSON text."""
    return bool(changed(before, after)) or not json_names(before) >= json_names(after) & {
        *before.names
    }


def with_columns(schema: pa.Schema | None, declared: pa.Schema | None) -> pa.Schema | None:
    """The schema with the declared columns, in their declared types."""
    if schema is None or declared is None:
        return declared if schema is None else schema
    for field in declared:
        at = schema.get_field_index(field.name)
        schema = schema.append(field) if at < 0 else schema.set(at, field)
    return schema


def conflict(column: str, before: pa.DataType, now: pa.DataType, batch: str) -> ResultConflict:
    return ResultConflict(
        f"column {column!r} of the results is {before} in earlier rows but {now} in batch {batch}: "
        "no type holds both. Name it in json_columns=, set its type with schema=, or return one "
        "type"
    )


def changed(before: pa.Schema, after: pa.Schema) -> list[str]:
    """The columns that have different types in the two schemas."""
    return [field.name for field in before if not field.type.equals(after.field(field.name).type)]


def keeps(rows: pa.Table, column: str, schema: pa.Schema) -> bool:
    """True if this column's values keep their meaning in the type that the schema gives it.

    Types alone cannot tell: as a float, 2⁵³ + 1 becomes another number, and the year 9999 is out of
    range in nanoseconds.
    """
    import pyarrow as pa

    from resumable_tasks.errors import BadResult
    from resumable_tasks.runners.values import jsontype

    if column not in rows.column_names:
        return True
    before, kind = rows.column(column), schema.field(column).type
    if before.type.equals(kind) or pa.types.is_null(before.type):
        return True
    try:
        there = cast_column(before, kind)
        if jsontype.is_json(kind):
            return True
        if _is_nan_alone(before.type, kind):
            return there is not None
        return bool(
            there.cast(_back(before.type, kind)).equals(before.cast(_back(before.type, kind)))
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, ValueError, BadResult):
        return False


def _is_nan_alone(before: pa.DataType, kind: pa.DataType) -> bool:
    """True for a float column that takes a type other than float, so it can only hold NaN."""
    import pyarrow as pa

    numbers = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    return bool(pa.types.is_floating(before)) and not numbers


def _back(before: pa.DataType, after: pa.DataType) -> pa.DataType:
    """The type before, with its null types replaced by the new ones: no value casts to null."""
    import pyarrow as pa

    if pa.types.is_null(before):
        return after
    if pa.types.is_struct(before) and pa.types.is_struct(after):
        return pa.struct(
            [field.with_type(_back(field.type, after.field(field.name).type)) for field in before]
        )
    if pa.types.is_list(before) and hasattr(after, "value_type"):
        return pa.list_(_back(before.value_type, after.value_type))
    return before


def schema_to_text(schema: pa.Schema) -> str:
    """A schema as the journal stores it: Arrow's IPC message in base64."""
    return base64.b64encode(schema.serialize()).decode()


def may_have_json(text: str | None) -> bool:
    """True if a schema may have columns of JSON text. Works without loading Arrow."""
    return text is not None and JSON_MARK in base64.b64decode(text)


def kinds_of(text: str | None) -> dict[str, type]:
    """The text and integer columns of a schema, with their Python types."""
    import pyarrow as pa

    found: dict[str, type] = {}
    for field in schema_from_text(text) if text else ():
        if pa.types.is_integer(field.type):
            found[field.name] = int
        elif pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            found[field.name] = str
    return found


def schema_from_text(text: str) -> pa.Schema:
    import pyarrow as pa

    from resumable_tasks.runners.values import jsontype  # noqa: F401 - registers its types

    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns and types of the schema; missing columns are null."""
    import pyarrow as pa

    if table.schema.equals(schema):
        return table
    columns = [
        cast_column(table.column(field.name), field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def is_cast_by_arrow(before: pa.Schema, after: pa.Schema) -> bool:
    """True if Arrow's own cast gives the same result as `cast_column` for all columns."""
    from resumable_tasks.runners.values import jsontype

    pairs = [(field.type, after.field(field.name).type) for field in before]
    return not any(
        not kind.equals(there) and (jsontype.is_json(kind) or _is_nan_alone(there, kind))
        for there, kind in pairs
    )


def cast_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """The column converted to the type to which `unify` has widened it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from resumable_tasks.runners.values import jsontype, plain

    if column.type.equals(kind):
        return column
    if jsontype.is_json(kind) and not pa.types.is_null(column.type):
        values = (plain.plain(chunk.to_pylist()) for chunk in column.chunks)
        return pa.chunked_array([jsontype.column(each) for each in values], kind)
    if _is_nan_alone(column.type, kind):
        if not pc.all(pc.is_null(column, nan_is_null=True), min_count=0).as_py():
            raise pa.ArrowInvalid("there are numbers in the column")
        return pa.chunked_array([pa.nulls(len(column), kind)], kind)
    return column.cast(kind)
