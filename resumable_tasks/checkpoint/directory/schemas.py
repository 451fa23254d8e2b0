"""One schema over all shards: how it widens, and where values would not stay what they are."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import ResultConflict
from resumable_tasks.runners.columns import JSON_MARK, Columns, json_field, json_names, json_text

if TYPE_CHECKING:
    import pyarrow as pa


class ResultSchema:
    """The schema of all results of a checkpoint, as it widens from commit to commit."""

    def __init__(self, text: str | None, declared: pa.Schema | None = None) -> None:
        """``text``: as the journal has it; None before the first row. ``declared`` by the job."""
        self._text = text
        self._declared = declared
        self._current: pa.Schema | None = None
        # The one that `text` is of, once it was compared.
        self._recorded: pa.Schema | None = None
        # Columns that were found not to take another type: all rows are read to find that out.
        self._fixed: set[tuple[Any, ...]] = set()

    @property
    def current(self) -> pa.Schema | None:
        """The columns of the rows, and their types; None where nothing is known of them."""
        if self._current is None:
            stored = schema_from_text(self._text) if self._text else None
            self._current = with_columns(stored, self._declared)
        return self._current

    def take(self, schema: pa.Schema | None) -> None:
        """Let this be the schema, now that a commit has it."""
        if schema is not None and schema is not self._recorded:
            self._text = schema_to_text(schema)
            self._current = self._recorded = schema

    def text_if_new(self, schema: pa.Schema | None) -> str | None:
        """The schema as a record has it, if it is another than the current one."""
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
        """The schema that holds both, where each value stays what it is.

        ``rows`` gives those that are new, ``there`` are all that there are. Raises
        `ResultConflict` with the column, both types and the batch.
        """
        unified = unify(current, new, batch)
        if current is None or (unified.equals(current) and unified.equals(new)):
            return unified
        for name in changed(new, unified):
            if not keeps(rows(), name, unified):
                before = current.field(name).type if name in current.names else unified
                raise conflict(name, before, new.field(name).type, batch)
        self._refuse_changes(current, new, unified, batch, there)
        return unified

    def _refuse_changes(
        self,
        current: pa.Schema,
        new: pa.Schema,
        unified: pa.Schema,
        batch: str,
        there: Iterable[pa.Table],
    ) -> None:
        names = changed(current, unified)
        kinds = {name: (name, current.field(name).type, new.field(name).type) for name in names}
        declared = self._declared.names if self._declared is not None else ()
        for name, known in kinds.items():
            if name in declared or known in self._fixed:
                raise conflict(*known, batch)
        for table in there if names else ():
            for name in names:
                if not keeps(table, name, unified):
                    self._fixed.add(kinds[name])
                    raise conflict(*kinds[name], batch)


def unify(current: pa.Schema | None, new: pa.Schema, batch: str) -> pa.Schema:
    """The schema that holds both, by Arrow's permissive promotion.

    Null with anything; numbers by width; new columns and struct fields. Whether the values then
    stay what they are is for `keeps` to say.
    Raises `ResultConflict` with the column, both types and the batch if there is none.
    """
    if current is None or current.equals(new):
        return new
    import pyarrow as pa

    _refuse_other_text(current, new, batch)
    try:
        unified = pa.unify_schemas([current, new], promote_options="permissive")
        return _marked(unified, json_names(current) | json_names(new))
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass  # found out below, with the column
    for field in new:
        before = current.field(field.name) if field.name in current.names else field
        try:
            pa.unify_schemas(
                [pa.schema([before]), pa.schema([field])], promote_options="permissive"
            )
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise conflict(field.name, before.type, field.type, batch) from error
    raise AssertionError("schemas that conflict have a column that does")


def _refuse_other_text(current: pa.Schema, new: pa.Schema, batch: str) -> None:
    """JSON text and other text are one type for Arrow, and no one column."""
    import pyarrow as pa

    for name in json_names(current) ^ json_names(new):
        if name in current.names and name in new.names:
            before, now = current.field(name), new.field(name)
            if not (pa.types.is_null(before.type) or pa.types.is_null(now.type)):
                raise conflict(name, before, now, batch)


def _marked(schema: pa.Schema, json: Iterable[str]) -> pa.Schema:
    for name in json:
        schema = schema.set(schema.get_field_index(name), json_field(name))
    return schema


def retyped(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    """The table with the types of ``wanted``, where each value stays what it is.

    A value of a column that is to be JSON text becomes what `json.dumps` makes of it. Raises
    `ResultConflict` with the column and both types.
    """
    import pyarrow as pa

    json = json_names(wanted) - json_names(table.schema)
    fields = [field for field in wanted if field.name in table.column_names]
    columns = []
    for field in fields:
        column = table.column(field.name)
        if field.name in json:
            columns.append(pa.array(json_text(field.name, column.to_pylist()), pa.string()))
        elif column.type.equals(field.type) or keeps(table, field.name, wanted):
            columns.append(column.cast(field.type))
        else:
            raise ResultConflict(
                f"column {field.name!r} of the results is {column.type} in rows that are stored, "
                f"and is to be {field.type}, in which not each of its values stays what it is"
            )
    return pa.table(columns, schema=pa.schema(fields))


def declared(stored: pa.Schema | None, columns: Columns) -> pa.Schema | None:
    """The columns whose types the job has said; of the JSON columns those that are stored too."""
    fields = {field.name: field for field in columns.schema or ()}
    there = stored.names if stored is not None else ()
    fields |= {name: json_field(name) for name in columns.json if name in there}
    import pyarrow as pa

    return pa.schema(list(fields.values())) if fields else None


def differ(before: pa.Schema, after: pa.Schema) -> bool:
    """True if a column has another type after than before, or becomes JSON text."""
    return bool(changed(before, after)) or not json_names(before) >= json_names(after) & {
        *before.names
    }


def with_columns(schema: pa.Schema | None, declared: pa.Schema | None) -> pa.Schema | None:
    """The schema with the declared columns, each of the type that is declared."""
    if schema is None or declared is None:
        return declared if schema is None else schema
    for field in declared:
        at = schema.get_field_index(field.name)
        schema = schema.append(field) if at < 0 else schema.set(at, field)
    return schema


def conflict(column: str, before: pa.DataType, now: pa.DataType, batch: str) -> ResultConflict:
    return ResultConflict(
        f"column {column!r} of the results is {before} in the rows before, and {now} in batch "
        f"{batch}: no type holds both. Name it in json_columns=, say its type by schema=, or let "
        "the handler return one type"
    )


def changed(before: pa.Schema, after: pa.Schema) -> list[str]:
    """The columns of the first schema that have another type in the second."""
    return [field.name for field in before if not field.type.equals(after.field(field.name).type)]


def keeps(rows: pa.Table, column: str, schema: pa.Schema) -> bool:
    """True if this column's values keep their meaning in the type that the schema gives it.

    Promotion looks at types alone: it would make 2⁵³ + 1 a float, text bytes, and the year 9999
    nanoseconds.
    """
    import pyarrow as pa

    if column not in rows.column_names:
        return True
    before, kind = rows.column(column), schema.field(column).type
    try:
        there, back = before.cast(kind), _back(before.type, kind)
        kept = _family(before.type, kind) and bool(there.cast(back).equals(before.cast(back)))
        if kept and "decimal" in str(before.type):
            # A float comes back as the decimal that it was made of, and is printed as another.
            return all(map(_reads_as, there.to_pylist(), before.to_pylist()))
        return kept
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return False


def _reads_as(found: Any, wanted: Any) -> bool:
    """True if a decimal that became a float reads back as it was, at any depth."""
    from decimal import Decimal

    if isinstance(wanted, Decimal) and isinstance(found, float):
        return Decimal(repr(found)) == wanted
    if isinstance(wanted, list) and isinstance(found, list):
        return all(map(_reads_as, found, wanted))
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(_reads_as(found.get(name), value) for name, value in wanted.items())
    return True


def _back(before: pa.DataType, after: pa.DataType) -> pa.DataType:
    """The type before, but for its nulls, to which nothing can be cast."""
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


def _family(before: pa.DataType, after: pa.DataType) -> bool:
    """True if text stays text, at any depth, and an empty struct is not filled."""
    import pyarrow as pa

    if pa.types.is_struct(before) and pa.types.is_struct(after):
        return all(_family(field.type, after.field(field.name).type) for field in before)
    if hasattr(before, "value_type") and hasattr(after, "value_type"):
        return _family(before.value_type, after.value_type)
    text = (pa.types.is_string, pa.types.is_large_string)
    if pa.types.is_null(before):
        return True
    return any(is_a(before) for is_a in text) == any(is_a(after) for is_a in text)


def schema_to_text(schema: pa.Schema) -> str:
    """A schema as the journal keeps it: Arrow's own IPC message in base64."""
    return base64.b64encode(schema.serialize()).decode()


def may_have_json(text: str | None) -> bool:
    """Whether a schema may have columns of JSON text, found out without Arrow."""
    return text is not None and JSON_MARK in base64.b64decode(text)


def schema_from_text(text: str) -> pa.Schema:
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns and types of the schema; columns that it lacks are null."""
    import pyarrow as pa

    if table.schema.equals(schema):
        return table
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
