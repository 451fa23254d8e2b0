"""Matches a handler's return value to the keys of its batch, or raises an error that says why not.

Rows carry the key's fields. If no row does, and there are as many rows as items, they match the
batch by position. This module also decides which items have failed because the handler left them
out, and which are parked because their rows cannot be stored.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import count
from resumable_tasks.errors import BadResult, InvalidKey, MissingResult, ResultConflict
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import Key, KeyScheme
from resumable_tasks.runners.given import Given
from resumable_tasks.runners.outcome import ItemFailure, Parked, ResultsMode
from resumable_tasks.runners.strays import Strays, strays
from resumable_tasks.runners.values import frames
from resumable_tasks.runners.values.columns import INFERRED, Columns
from resumable_tasks.runners.values.plaintable import PlainTable, arrow_table

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
Failed = list[tuple[Key, BaseException | str]]

# With fewer integer keys than this, a permutation may be a coincidence; but not in a part of a
# failed batch, which may have failed because of a permutation.
_FEW = 3


@frozen
class Matched:
    """A batch's rows, the canonical keys that are complete, and the items that failed.

    ``unwritten``: the rows, before `table` converts them to Arrow. ``rows``: set instead if the
    checkpoint takes rows as dicts. ``parked``: the items whose rows cannot be stored, with their
    rows as dicts and the reason.
    """

    unwritten: pa.Table | PlainTable | None
    done: bytes
    completed: int
    failed: Sequence[tuple[Key, BaseException | str]] = ()
    parked: Sequence[Parked] = ()
    rows: list[Row] | None = None

    @property
    def table(self) -> pa.Table | None:
        """The rows as an Arrow table; None if there are none, or if they are in ``rows``."""
        return arrow_table(self.unwritten)

    @property
    def table_shown(self) -> pa.Table | None:
        """The rows as a table, as far as they fit into one."""
        if self.rows is None:
            return self.table
        from resumable_tasks.runners.values.tables import table_of_what_fits

        return table_of_what_fits(self.rows)


@frozen
class _Found:
    """A handler's table or rows, and the key of each row (None: in the order of the batch)."""

    rows: pa.Table | list[Row]
    keys: list[Key] | None


def match(
    returned: Any,
    batch: Batch,
    scheme: KeyScheme,
    results: ResultsMode,
    columns: Columns = INFERRED,
    given: Given | None = None,
    strict: bool = False,
) -> Matched:
    """Match the value that a handler returned to the items of its batch. Raises `BadResult`.

    If rows cannot be stored beside the others, only their items are parked. ``given``: the
    handler's copy of the items, which it may have reordered. ``strict``: raise for a row that would
    otherwise be left out, because the batch can be collected again.
    """
    if frames.is_arrow(returned) and results != "none":
        failed: Failed = []
        found = _match_arrow(returned, batch, scheme, results, given)
    else:
        rows, failed = _take_failures(returned, batch, results, strict)
        if results == "none":
            if rows:
                raise _wrong_shape(
                    f'the handler returned {_name(returned)}, and results="none" would discard it; '
                    'return None, or set results="one" or "many"'
                )
            return _complete(None, None, failed, batch, results)
        found = _match_rows(rows, batch, scheme, results, dict(failed), given)
    found, failed, parked, note = _told_apart(found, failed, batch, results, strict)
    apart = {keys.canonical(key) for key, _, _ in parked}
    if not isinstance(found.rows, list):
        if _is_as_declared(found.rows, columns):
            matched = _complete(found.rows, found.keys, failed, batch, results, apart, note)
            return replace(matched, parked=parked) if parked else matched
        found = _Found(found.rows.to_pylist(), found.keys)
    if columns.as_rows:
        from resumable_tasks.runners.rows import plain_row

        matched = _complete(None, found.keys, failed, batch, results, apart, note)
        rows = [plain_row(row, columns.json) for row in found.rows]
        return replace(matched, rows=rows or None, parked=parked)
    table, bad = _separated(found, batch, dict(failed), columns)
    matched = _complete(table, found.keys, failed, batch, results, apart | bad.keys(), note)
    set_apart = [(keys.parse(line), rows, why) for line, (why, rows) in bad.items()]
    return replace(matched, parked=[*parked, *set_apart]) if parked or set_apart else matched


def carry_keys(returned: list[Any], scheme: KeyScheme) -> bool:
    """True if the first of these rows, or of these tables, carries the key of its item."""
    try:
        row = next(row for entry in returned if (row := _first_of(entry)) is not None)
    except (BadResult, StopIteration):
        return False
    return all(column in row for column in scheme.columns)


def _first_of(entry: Any) -> Any:
    """Return the row as a dict, or the first row or the column names of a table."""
    if not frames.is_arrow(entry):
        return _to_dict(entry)
    table = frames.to_arrow(entry)
    return next(iter(table), None) if isinstance(table, list) else table.column_names


def _told_apart(
    found: _Found, failed: Failed, batch: Batch, results: ResultsMode, strict: bool
) -> tuple[_Found, Failed, list[Parked], str]:
    """Return the rows that belong to items of the batch, failures, parked items, and a note."""
    if found.keys is None:
        return found, failed, [], ""
    if not failed and _are_in_order(found.keys, batch, results):
        return _Found(found.rows, batch.keys), failed, [], ""
    known = {keys.canonical(key): error for key, error in failed}
    rows = found.rows
    stray = strays(
        *(found.keys, known, batch, results),
        lambda: rows if isinstance(rows, list) else rows.to_pylist(),
        strict,
    )
    if stray is None:
        return found, failed, [], ""
    kept = [found.keys[at] for at in stray.kept]
    of_them = [rows[at] for at in stray.kept] if isinstance(rows, list) else _taken(rows, stray)
    failed = [(key, stray.failed.get(keys.canonical(key), error)) for key, error in failed]
    return _Found(of_them, kept), failed, stray.parked, stray.note


def _taken(rows: pa.Table, stray: Strays) -> pa.Table:
    import pyarrow as pa

    return rows.take(pa.array(stray.kept, pa.int64()))


def _is_as_declared(table: pa.Table, columns: Columns) -> bool:
    """True if a table has the declared types already and needs no conversion of its rows."""
    if columns.json and columns.json & set(table.column_names):
        return False
    if columns.as_rows:
        return True
    for field in columns.schema or ():
        if field.name not in table.column_names:
            return False
        found = table.column(field.name)
        if not found.type.equals(field.type) or (found.null_count and not field.nullable):
            return False
    return True


def _separated(
    found: _Found, batch: Batch, failed: dict[Key, Any], columns: Columns
) -> tuple[pa.Table | PlainTable | None, dict[bytes, tuple[ResultConflict, list[Row]]]]:
    """Return the rows that can be stored, as a table; the others by key, with the reason."""
    from resumable_tasks.runners.values import tables

    rows = found.rows
    assert isinstance(rows, list)
    table, odd = tables.separate(rows, columns)
    if not odd:
        return table, {}
    from resumable_tasks.runners.values.plain import plain

    of_rows = found.keys
    if of_rows is None:
        of_rows = [key for key in batch.keys if key not in failed]
    lines = [_canonical_of(key, "a row of the handler's result") for key in of_rows]
    bad: dict[bytes, tuple[ResultConflict, list[Row]]] = {}
    left = list(range(len(rows)))
    # Removing rows may put others in the minority, so repeat until all remaining rows fit together.
    while odd:
        for at, why in odd.items():
            bad.setdefault(lines[left[at]], (ResultConflict(why), []))
        left = [at for at in left if lines[at] not in bad]
        table, odd = tables.separate([rows[at] for at in left], columns)
    for line, row in zip(lines, rows, strict=True):
        if line in bad:
            bad[line][1].append(plain(row))
    return table, bad


def _take_failures(
    returned: Any, batch: Batch, results: ResultsMode, strict: bool
) -> tuple[list[Any], Failed]:
    """Return the rows, with each `ItemFailure` left in place, and those failures by key."""
    if returned is None:
        if results == "none":
            return [], []
        raise _wrong_shape(
            'the handler returned None; return rows, or set results="none" if it makes none '
            f"(results={results!r} needs {'one row per item' if results == 'one' else 'rows'})"
        )
    if type(returned) is not list and (
        isinstance(returned, (str, bytes, dict)) or not isinstance(returned, Iterable)
    ):
        raise _wrong_shape(
            f"the handler returned {_name(returned)}; return a list of rows (dicts, dataclasses or "
            "pydantic models) or an Arrow table"
        )
    entries = returned if isinstance(returned, list) else list(returned)
    if ItemFailure not in set(map(type, entries)):
        return entries, []
    rows = _without_tables(entries)
    failed = [(row.key, row.error) for row in rows if type(row) is ItemFailure]
    known = set(keys.split(batch.lines))
    foreign = [key for key, _ in failed if _canonical_of(key, "an ItemFailure") not in known]
    if foreign:
        note = (
            f"the handler returned an ItemFailure for key {keys.shown(foreign[0])}, "
            "which is not in its batch"
        )
        if strict or results != "one" or len(failed) == len(rows):
            raise BadResult(note)
        # The item it was meant for has no row, so it fails anyway.
        log.warning("batch %d: %s: ignored", batch.number, note)
        failed = [(key, error) for key, error in failed if key not in foreign]
        rows = [row for row in rows if type(row) is not ItemFailure or row.key not in foreign]
    if results == "none":
        rows = [row for row in rows if type(row) is not ItemFailure]
    return rows, failed


def _without_tables(entries: list[Any]) -> list[Any]:
    """Return the entries; if they are only tables and failures, with the tables as rows."""
    others = [entry for entry in entries if type(entry) is not ItemFailure]
    if len(others) == len(entries) or not frames.is_arrow(others):
        return entries
    try:
        return frames.spread(entries)
    except BadResult as error:
        raise _wrong_shape(str(error)) from error


def _match_rows(
    entries: list[Any],
    batch: Batch,
    scheme: KeyScheme,
    results: ResultsMode,
    failed: dict[Key, Any],
    given: Given | None,
) -> _Found:
    rows = entries
    if entries and set(map(type, entries)) != {dict}:
        rows = [_to_dict(row) for row in entries]
    columns = scheme.columns
    real = [row for row in rows if row is not None] if failed else rows
    present = _keys_of_rows(real, columns, scheme.composite)
    if present is not None:
        return _Found(real, _of_tuples(present, batch, scheme))
    _check_names(dict.fromkeys(name for row in real for name in row), columns)
    if len(rows) != len(batch) or (results == "many" and rows):
        raise _wrong_shape(
            f"the handler returned {count(len(rows), 'row')} for {count(len(batch), 'item')}, and "
            f"the rows have no {_columns(columns)}: add the key of its item to each row"
            + ("" if results == "many" else ", or return one row per item in their order")
        )
    in_order = _in_order(batch, given)
    for row, key in zip(rows, in_order, strict=True):
        if row is None and key not in failed:
            raise BadResult(
                "the rows carry no key, and an ItemFailure is in the place of another item; move "
                f"it to the place of its item, or add {_columns(columns)} to each row"
            )
    if not failed and rows:
        _check_permutations({name: [row.get(name) for row in rows] for name in rows[0]}, batch)
    with_keys = [
        {**dict(zip(columns, scheme.values(key), strict=True)), **row}
        for row, key in zip(rows, in_order, strict=True)
        if row is not None and key not in failed
    ]
    if in_order is batch.keys:
        return _Found(with_keys, None)
    return _Found(with_keys, [key for key in in_order if key not in failed])


def _check_names(names: Iterable[Any], columns: tuple[str, ...]) -> None:
    """Raise if a column's name is nearly that of the key: the rows must not match by position."""
    wanted = {_bare(column): column for column in columns}
    for name in names:
        if isinstance(name, str) and (column := wanted.get(_bare(name))) is not None:
            raise _wrong_shape(
                f"the rows have no {_columns(columns)} but a column {name!r}: rename it to "
                f"{column!r} if it holds the key, otherwise to another name"
            )


def _bare(name: str) -> str:
    return "".join(name.split()).casefold()


def _check_permutations(values: dict[str, list[Any]], batch: Batch) -> None:
    """Raise if a column holds the keys in another order: the rows must not match by position."""
    kinds = set(map(type, batch.keys))
    few = kinds == {int} and len(batch) < _FEW and batch.part_of is None
    if few or len(batch) < 2:
        return
    for name, column in values.items():
        if (
            column != batch.keys
            and set(map(type, column)) <= kinds
            and (set(column) == set(batch.keys))
        ):
            raise _wrong_shape(
                f"column {name!r} of the rows holds the items' keys in another order, but rows "
                "without a key are matched by position: give that column the name of the key"
            )


def _in_order(batch: Batch, given: Given | None) -> list[Key]:
    """Return the keys in the order in which the handler left its list of items.

    If the handler sorted the list, its rows have the same order. Raises `BadResult` if the list no
    longer holds the items that were given.
    """
    order = given.order() if given is not None else None
    if given is None or order == list(range(len(batch))):
        return batch.keys
    if order is None:
        raise _wrong_shape(
            "the handler changed its list of items, and its rows carry no key, so they cannot be "
            "matched. Add the key of its item to each row, or work on a copy of the list"
        )
    return [batch.keys[at] for at in order]


def _of_tuples(present: list[Any], batch: Batch, scheme: KeyScheme) -> list[Any]:
    """Return the keys of the rows; a tuple stored as text in a single column becomes a tuple."""
    if scheme.composite or b"[" not in batch.lines:  # no tuple is stored as text
        return present
    texts = {scheme.values(key)[0]: key for key in batch.keys}
    return [texts.get(key, key) if type(key) is str else key for key in present]


def _keys_of_rows(rows: list[Any], columns: tuple[str, ...], composite: bool) -> list[Any] | None:
    """Return the key of each row; None if no row carries one. Raises if only some do."""
    try:
        found = list(map(itemgetter(*columns), rows))
        return [(key,) for key in found] if composite and len(columns) == 1 else found
    except KeyError:
        pass
    if not any(column in row for row in rows for column in columns):
        return None
    at, row = next(
        (i, row) for i, row in enumerate(rows) if not all(column in row for column in columns)
    )
    raise _wrong_shape(
        f"row {at} of the handler's result has no {_columns(columns)} (it has "
        f"{keys.shorten(list(row), 200)}), but others have; add the key of its item to each row"
    )


def _complete(
    table: pa.Table | PlainTable | None,
    found: list[Key] | None,
    failed: Failed,
    batch: Batch,
    results: ResultsMode,
    parked: Set[bytes] = frozenset(),
    note: str = "",
) -> Matched:
    """Decide which items are done, given the keys of the rows (None: every item has its row)."""
    in_order = found is None or _are_in_order(found, batch, results)
    if in_order and not failed and not parked:
        return Matched(table, batch.lines, len(batch))
    lines = dict(zip(keys.split(batch.lines), batch.keys, strict=True))
    failures = {keys.canonical(key): error for key, error in failed}
    if found is not None and results == "one":
        seen = {keys.canonical(key) for key in found}
        for line in lines:
            if not (line in seen or line in failures or line in parked):
                but = f", but {note}" if note else ""
                failures[line] = MissingResult(f"the handler returned no row for this item{but}")
    done = [line for line in lines if line not in failures and line not in parked]
    return Matched(
        table if table is not None and table.num_rows else None,
        keys.join(done),
        len(done),
        [(lines[line], error) for line, error in failures.items()],
    )


def _are_in_order(found: list[Key], batch: Batch, results: ResultsMode) -> bool:
    if results != "one" or found is batch.keys:
        return results == "one"
    # The types are compared because 1 equals True; tuples take the slow path.
    return found == batch.keys and set(map(type, found)) <= {str, int}


def _wrong_shape(message: str) -> BadResult:
    """Return an error about the shape of the results, which any batch would have."""
    error = BadResult(message)
    error.of_shape = True
    return error


def _canonical_of(key: Any, where: str) -> bytes:
    try:
        return keys.canonical(key)
    except InvalidKey as error:
        raise BadResult(f"{where}: {error}") from error


def _match_arrow(
    value: Any, batch: Batch, scheme: KeyScheme, results: ResultsMode, given: Given | None
) -> _Found:
    try:
        table = frames.to_arrow(value)
    except BadResult as error:
        raise _wrong_shape(str(error)) from error
    if isinstance(table, list):
        return _match_rows(table, batch, scheme, results, {}, given)
    if _has_the_items_keys(table, batch, scheme):
        return _Found(table, batch.keys)
    columns, names = scheme.columns, set(table.column_names)
    there = [column for column in columns if column in names]
    if len(there) == len(columns):
        found = [table.column(column).to_pylist() for column in columns]
        return _Found(table, list(zip(*found, strict=True)) if scheme.composite else found[0])
    if not there:
        _check_names(table.column_names, columns)
    if there or len(batch) != table.num_rows or results == "many":
        raise _wrong_shape(
            f"the handler returned a table of {table.num_rows:,} rows for {len(batch):,} items, "
            f"without {_columns(columns)} (it has {keys.shorten(table.column_names, 200)}): add a "
            "column with the keys, or return one row per item in their order"
        )
    values = zip(table.column_names, table.columns, strict=True)
    _check_permutations({n: v.to_pylist() for n, v in values if _may_be_keys(v)}, batch)
    from resumable_tasks.runners.values import tables

    in_order = _in_order(batch, given)
    for at, column in enumerate(columns):
        of_keys = [scheme.values(key)[at] for key in in_order]
        table = table.add_column(at, column, tables.array(column, of_keys))
    return _Found(table, None if in_order is batch.keys else in_order)


def _has_the_items_keys(table: pa.Table, batch: Batch, scheme: KeyScheme) -> bool:
    """True if the key columns of the table equal those of the items, in the same order."""
    import pyarrow as pa

    items = batch.items
    if not scheme.fields or not isinstance(items, pa.RecordBatch) or len(batch) != table.num_rows:
        return False
    for name in scheme.fields:
        at, of_items = table.schema.get_field_index(name), items.schema.get_field_index(name)
        if at < 0 or of_items < 0:
            return False
        found, wanted = table.column(at), items.column(of_items)
        if found.num_chunks == 1:  # `equals` of a chunked array releases the GIL
            found = found.chunk(0)
        else:
            wanted = pa.chunked_array([wanted])
        if not found.equals(wanted):
            return False
    return True


def _may_be_keys(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    kind = column.type
    return bool(
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    )


def _to_dict(row: Any) -> Row | None:
    """Return a row as a dict; None for an `ItemFailure`, which keeps its place."""
    if type(row) is ItemFailure:
        return None
    if isinstance(row, dict):
        return row
    from resumable_tasks.runners.values.plain import fields_of

    fields = fields_of(row)
    if fields is None:
        raise _wrong_shape(
            f"the handler returned a list that contains {_name(row)}; a row is a dict, a "
            "dataclass, a named tuple, or a model of pydantic, attrs or msgspec"
        )
    return fields


def _columns(columns: tuple[str, ...]) -> str:
    return "key column " + ", ".join(map(repr, columns))


def _name(value: Any) -> str:
    if inspect.iscoroutine(value):
        value.close()  # nobody will await it
        return f"coroutine {value.__name__}()"
    return f"{type(value).__name__} {keys.shorten(value, 60)}"
