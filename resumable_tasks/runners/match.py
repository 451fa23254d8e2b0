"""Matching: a handler's return value → rows of the batch's keys, or an error that says why not.

Rows carry the key's fields, or match the batch by position when none of them does and they are
as many. This is where "an item that the handler left out has failed" is decided.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import BadResult, InvalidKey, MissingResult, ResultConflict
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import Key, KeyScheme
from resumable_tasks.runners import columns as types
from resumable_tasks.runners.columns import INFERRED, Columns
from resumable_tasks.runners.outcome import ItemFailure, Parked, ResultsMode

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Matched:
    """A batch's rows, the canonical keys that are complete, and the items that failed.

    ``parked`` are items whose rows, here as dicts, cannot be stored, and why.
    """

    table: pa.Table | None
    done: bytes
    completed: int
    failed: Sequence[tuple[Key, BaseException | str]] = ()
    parked: Sequence[Parked] = ()


def match(
    returned: Any,
    batch: Batch,
    scheme: KeyScheme,
    results: ResultsMode,
    columns: Columns = INFERRED,
) -> Matched:
    """Match what the handler returned to the items of its batch. Raises `BadResult`.

    The values of the JSON columns become text, since Arrow would give all dicts of a column
    the same fields.
    """
    json_columns = columns.json
    rows, failed = _take_failures(returned, batch, results)
    if results == "none":
        if rows:
            raise _wrong_shape(
                f'the handler returned {_name(returned)}, and results="none" would throw it '
                'away; return None, or say results="one" or "many"'
            )
        table, found = None, None
    elif _is_arrow(rows):
        table, found = _match_arrow(rows, batch, scheme, results)
    else:
        misfits: list[tuple[Key, BaseException | str]] = []
        known = dict(failed)
        table, found = _match_rows(rows, batch, scheme, results, known, json_columns, misfits)
        failed += misfits
    if table is not None:
        for field in table.schema:
            if types.unwritable(field.type):
                raise BadResult(
                    f"column {field.name!r} of the handler's result holds empty dicts only, which "
                    "Parquet cannot write; leave it out, or give it a field"
                )
    return _complete(table, found, failed, batch, results)


def _take_failures(
    returned: Any, batch: Batch, results: ResultsMode
) -> tuple[Any, list[tuple[Key, BaseException | str]]]:
    """The rows with an `ItemFailure` left in its place, and those failures by key."""
    if _is_arrow(returned):
        return returned, []
    if returned is None:
        if results == "none":
            return [], []
        raise _wrong_shape(
            f'the handler returned None; return rows, or say results="none" if it makes none '
            f"(results={results!r} wants {'one row per item' if results == 'one' else 'rows'})"
        )
    if isinstance(returned, (str, bytes, dict)) or not isinstance(returned, Iterable):
        raise _wrong_shape(
            f"the handler returned {_name(returned)}; it takes a list of items and returns a list "
            "of rows (dicts, dataclasses or pydantic models), or an Arrow table"
        )
    rows = returned if isinstance(returned, list) else list(returned)
    failed = [(row.key, row.error) for row in rows if type(row) is ItemFailure]
    known = set(keys.split(batch.lines)) if failed else set()
    for key, _ in failed:
        if _canonical_of(key, "an ItemFailure") not in known:
            raise BadResult(
                f"the handler returned an ItemFailure for key {keys.shorten(key)}, "
                "which is not in its batch"
            )
    if results == "none":
        rows = [row for row in rows if type(row) is not ItemFailure]
    return rows, failed


def _match_rows(
    entries: list[Any],
    batch: Batch,
    scheme: KeyScheme,
    results: ResultsMode,
    failed: dict[Key, Any],
    json_columns: Set[str],
    misfits: list[tuple[Key, BaseException | str]],
) -> tuple[pa.Table | None, list[Key] | None]:
    """``misfits`` takes in the items whose rows are left out."""
    rows = entries
    if set(map(type, entries)) > {dict} or (entries and type(entries[0]) is not dict):
        rows = [_to_dict(row) for row in entries]
    columns = scheme.columns
    real = [row for row in rows if row is not None] if failed else rows
    present = _keys_of_rows(real, columns, scheme.composite)
    if present is not None:
        rows = real
    else:
        if len(rows) != len(batch) or (results == "many" and rows):
            raise _wrong_shape(
                f"the handler returned {len(rows):,} rows for {len(batch):,} items, and the rows "
                f"have no {_columns(columns)}: let each row carry the key of its item"
                + ("" if results == "many" else ", or return one row per item in their order")
            )
        for row, key in zip(rows, batch.keys, strict=True):
            if row is None and key not in failed:
                raise BadResult(
                    "the rows carry no key and an ItemFailure stands at another item's place; "
                    f"put it at the place of its item, or let each row carry {_columns(columns)}"
                )
        rows = [
            {**dict(zip(columns, scheme.values(key), strict=True)), **row}
            for row, key in zip(rows, batch.keys, strict=True)
            if row is not None and key not in failed
        ]
    try:
        return to_table(rows, json_columns), present
    except BadResult:
        odd = _odd_rows(rows, json_columns)
        of_rows = present if present is not None else [k for k in batch.keys if k not in failed]
        each = [_canonical_of(key, "a row of the handler's result") for key in of_rows]
        bad = {each[at]: why for at, why in odd.items()}
        if not bad or not bad.keys() <= set(keys.split(batch.lines)):
            raise
    for line, why in bad.items():
        misfits.append((keys.parse(line), ResultConflict(why)))
    kept = [at for at, line in enumerate(each) if line not in bad]
    return to_table([rows[at] for at in kept], json_columns), [of_rows[at] for at in kept]


def _odd_rows(rows: list[dict[str, Any]], json_columns: Set[str]) -> dict[int, str]:
    """The rows that keep a column from having one type, and why; none if no type prevails.

    They alone are not to be kept: the call is paid for, and another one would give the same.
    """
    odd: dict[int, str] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if name in json_columns or not isinstance(name, str) or _fits(name, values):
            continue
        kinds = Counter(type(value) for value in values if value is not None)
        (kind, times), *_ = kinds.most_common(1)
        usual = [value for value in values if type(value) is kind]
        if 2 * times <= kinds.total() or not _fits(name, usual):
            return {}
        for at, value in enumerate(values):
            if value is not None and type(value) is not kind and not _fits(name, [*usual, value]):
                odd[at] = (
                    f"column {name!r} is {keys.shorten(value)} of type {type(value).__name__} "
                    f"here, and of type {kind.__name__} in most rows of its batch: no type holds "
                    "both. Let the handler return one type"
                )
    return odd


def _fits(name: str, values: list[Any]) -> bool:
    try:
        array(name, values)
    except BadResult:
        return False
    return True


def _keys_of_rows(rows: list[Any], columns: tuple[str, ...], composite: bool) -> list[Any] | None:
    """The key that each row carries; None if no row carries any. Raises if only some do."""
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
        f"{keys.shorten(list(row), 200)}), and others have; let each row carry the key of its item"
    )


def _complete(
    table: pa.Table | None,
    found: list[Key] | None,
    failed: list[tuple[Key, BaseException | str]],
    batch: Batch,
    results: ResultsMode,
) -> Matched:
    """Decide which items are done, given the keys of the rows (None: every item has its row)."""
    in_order = found is None or (
        # Equal, and not as 1 equals True; tuples are looked into below.
        results == "one" and found == batch.keys and set(map(type, found)) <= {str, int}
    )
    if in_order and not failed:
        return Matched(table, batch.lines, len(batch))
    lines = dict(zip(keys.split(batch.lines), batch.keys, strict=True))
    failures = {keys.canonical(key): error for key, error in failed}
    if found is not None:
        seen: dict[bytes, int] = {}
        for at, key in enumerate(found):
            line = _canonical_of(key, f"row {at} of the handler's result")
            if line not in lines:
                raise BadResult(
                    f"row {at} of the handler's result has key {keys.shorten(key)}, "
                    "which is not in its batch"
                )
            if line in failures:
                raise BadResult(
                    f"the handler returned a row and an ItemFailure for key {keys.shorten(key)}"
                )
            if results == "one" and line in seen:
                raise BadResult(
                    f"rows {seen[line]} and {at} of the handler's result have the same key "
                    f'{keys.shorten(key)}; say results="many" if an item may have many rows'
                )
            seen[line] = at
        if results == "one":
            for line in lines:
                if line not in seen and line not in failures:
                    error = MissingResult("the handler returned no row for this item")
                    failures[line] = error
    done = [line for line in lines if line not in failures]
    return Matched(
        table if table is not None and table.num_rows else None,
        keys.join(done),
        len(done),
        [(lines[line], error) for line, error in failures.items()],
    )


def _wrong_shape(message: str) -> BadResult:
    """An error that any batch would have with such results."""
    error = BadResult(message)
    error.of_shape = True
    return error


def _canonical_of(key: Any, where: str) -> bytes:
    try:
        return keys.canonical(key)
    except InvalidKey as error:
        raise BadResult(f"{where}: {error}") from error


def _is_arrow(value: Any) -> bool:
    return hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__")


def _match_arrow(
    value: Any, batch: Batch, scheme: KeyScheme, results: ResultsMode
) -> tuple[pa.Table, list[Key] | None]:
    import pyarrow as pa

    try:
        if isinstance(value, pa.Table):
            table = value
        elif hasattr(value, "__arrow_c_stream__"):
            table = pa.table(value)
        else:
            table = pa.Table.from_batches([pa.record_batch(value)])
        table = types.normalise(table.replace_schema_metadata(None))
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise _wrong_shape(f"the handler's {_name(value)} is no Arrow table: {error}") from error
    columns = scheme.columns
    there = [column for column in columns if column in table.column_names]
    if len(there) == len(columns):
        found = [table.column(column).to_pylist() for column in columns]
        return table, list(zip(*found, strict=True)) if scheme.composite else found[0]
    if there or len(batch) != table.num_rows or results == "many":
        raise _wrong_shape(
            f"the handler returned a table of {table.num_rows:,} rows for {len(batch):,} items, "
            f"without {_columns(columns)} (it has {keys.shorten(table.column_names, 200)}): let "
            "it carry the key of each item, or one row per item in their order"
        )
    for at, column in enumerate(columns):
        values = [scheme.values(key)[at] for key in batch.keys]
        table = table.add_column(at, column, array(column, values))
    return table, None


def to_table(rows: list[dict[str, Any]], json_columns: Set[str] = frozenset()) -> pa.Table | None:
    """Rows as columns; a column is any field of any row, in the order first met."""
    import pyarrow as pa

    if not rows:
        return None
    # pa.Table.from_pylist would take the fields of the first row for those of all.
    names = list(rows[0])
    try:
        if set(map(len, rows)) != {len(names)}:
            raise KeyError
        columns = [[row[name] for row in rows] for name in names]
    except KeyError:
        names = list(dict.fromkeys(name for row in rows for name in row))
        columns = [[row.get(name) for row in rows] for name in names]
    for name in names:
        if not isinstance(name, str):
            raise BadResult(f"a row has a field named {keys.shorten(name)}; names are strings")
    columns = [
        types.json_text(name, values) if name in json_columns else values
        for name, values in zip(names, columns, strict=True)
    ]
    arrays = [array(name, values) for name, values in zip(names, columns, strict=True)]
    fields = [
        types.json_field(name) if name in json_columns else pa.field(name, each.type)
        for name, each in zip(names, arrays, strict=True)
    ]
    arrays = [
        each.cast(field.type) if name in json_columns else each
        for name, field, each in zip(names, fields, arrays, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


_PLAIN_TYPES = {
    str: ("string",),
    int: ("int64", "uint64"),  # Arrow's own inference knows no uint64 since its version 26
    float: ("float64",),
    bool: ("bool",),
}


def array(name: str, values: list[Any]) -> pa.Array:
    import pyarrow as pa

    try:
        kinds = set(map(type, values)) - {type(None)}
        aliases = _PLAIN_TYPES.get(kinds.pop(), ()) if len(kinds) == 1 else ()
        # Arrow's inference tries to import pandas at every call where there is none: 60 µs.
        for alias in aliases:
            with contextlib.suppress(OverflowError):
                return pa.array(values, pa.type_for_alias(alias))
        return pa.array(values)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        found = sorted({type(value).__name__ for value in values if value is not None})
        raise BadResult(
            f"column {name!r} of the handler's result cannot be stored: it holds "
            f"{', '.join(found)}, and Arrow says: {error}"
        ) from error


def _to_dict(row: Any) -> dict[str, Any] | None:
    """A row as a dict; None for an `ItemFailure`, which keeps its place."""
    if type(row) is ItemFailure:
        return None
    if isinstance(row, dict):
        return row
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        return dataclasses.asdict(row)
    if hasattr(row, "model_dump"):  # pydantic, without importing it
        dumped: dict[str, Any] = row.model_dump()
        return dumped
    raise _wrong_shape(
        f"the handler returned a list with {_name(row)} in it; a row is a dict, a dataclass or a "
        "pydantic model"
    )


def _columns(columns: tuple[str, ...]) -> str:
    return "key column " + ", ".join(map(repr, columns))


def _name(value: Any) -> str:
    return f"{type(value).__name__} {keys.shorten(value, 60)}"
