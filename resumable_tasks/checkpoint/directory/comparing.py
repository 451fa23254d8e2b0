"""Compares two checkpoints: keys that only one of them has, and rows that differ.

Arrow compares whole columns; only the values to be shown become Python objects. The rows of both
checkpoints are in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resumable_tasks.checkpoint.directory import rows
from resumable_tasks.checkpoint.directory.completed import completed_lines
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.arrow import taken
from resumable_tasks.items.keys import Key, KeyScheme

if TYPE_CHECKING:
    import pyarrow as pa

    from resumable_tasks.checkpoint.form import CommittedRows

# Our own columns beside those of the key; no user's column has such a name.
_A, _B, _NTH = "\0a", "\0b", "\0nth"


@dataclass(frozen=True, slots=True)
class Changed:
    """An item whose rows differ: the values in A and B of each column that differs.

    If it has several rows, the values are of the first row that differs. There are no columns if
    the numbers of rows differ.
    """

    key: Key
    columns: dict[str, tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Difference:
    """The counts of completed items, and the first few items of each kind."""

    only_a: int
    only_b: int
    both: int
    differ: int
    first_only_a: Sequence[Key]
    first_only_b: Sequence[Key]
    first_differ: Sequence[Changed]
    columns_only_a: Sequence[str]
    columns_only_b: Sequence[str]

    @property
    def same(self) -> bool:
        """True if all completed items and their rows are the same."""
        columns = (*self.columns_only_a, *self.columns_only_b)
        return not (self.only_a or self.only_b or self.differ or columns)


def compare(a: Reader, b: Reader, most: int) -> Difference:
    """Compare two checkpoints. Raises `UsageError` if their keys have different fields."""
    import pyarrow.compute as pc

    schemes = KeyScheme.of(a.manifest.key), KeyScheme.of(b.manifest.key)
    if schemes[0].columns != schemes[1].columns:
        names = (", ".join(scheme.columns) for scheme in schemes)
        raise UsageError(
            f"the keys of {a.store.url} come from {next(names)}, those of {b.store.url} from "
            f"{next(names)}: their items cannot be compared",
            remedy="Compare two partitions of one job",
        )
    lines = [_lines(each) for each in (a, b)]
    only = [
        mine.filter(pc.invert(pc.is_in(mine, value_set=others)))
        for mine, others in (lines, reversed(lines))
    ]
    tables = [rows.read(each.store, _whole) for each in (a, b)]
    both = len(lines[0]) - len(only[0])
    many = "many" in (a.manifest.results, b.manifest.results)
    count, changed, columns = 0, list[Changed](), [list[str](), list[str]()]
    if both and all(table.num_rows for table in tables):
        count, changed = _changed(tables[0], tables[1], schemes[0], most, many)
        columns = [table.schema.names for table in tables]
    return Difference(
        only_a=len(only[0]),
        only_b=len(only[1]),
        both=both,
        differ=count,
        first_only_a=_parsed(only[0], most),
        first_only_b=_parsed(only[1], most),
        first_differ=changed,
        columns_only_a=[name for name in columns[0] if name not in columns[1]],
        columns_only_b=[name for name in columns[1] if name not in columns[0]],
    )


def _lines(reader: Reader) -> pa.Array:
    """The canonical keys of all completed items."""
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = b"\n".join(completed_lines(reader.store)).decode()
    if not whole:
        return pa.array([], pa.large_string())
    return pc.split_pattern(pa.array([whole], pa.large_string()), "\n").flatten()


def _parsed(lines: pa.Array, most: int) -> list[Key]:
    return [keys.parse(line.encode()) for line in lines[:most].to_pylist()]


def _whole(found: CommittedRows) -> pa.Table:
    import pyarrow as pa

    parts = list(found.tables())
    return pa.concat_tables(parts) if parts else found.schema.empty_table()


def _changed(
    a: pa.Table, b: pa.Table, scheme: KeyScheme, most: int, many: bool
) -> tuple[int, list[Changed]]:
    """The number of items with different rows in the two, and the first of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    left, right = _keyed(a, scheme, _A, many), _keyed(b, scheme, _B, many)
    by = [name for name in left.schema.names if name != _A]
    right = right.cast(
        pa.schema([pa.field(_B, pa.int64()), *(left.schema.field(name) for name in by)])
    )
    pairs = left.join(right, keys=by, join_type="inner", use_threads=False).sort_by(_A)
    first, second = (taken(t, pairs.column(n).to_pylist()) for t, n in ((a, _A), (b, _B)))
    names = [n for n in a.schema.names if n in b.schema.names and n not in scheme.columns]
    masks = {name: _differs(first.column(name), second.column(name)) for name in names}
    mask = pa.chunked_array([pa.repeat(pa.scalar(False), len(pairs))])
    for each in masks.values():
        mask = pc.or_(mask, each)
    found = pc.indices_nonzero(mask).to_pylist()
    changed: dict[bytes, Changed] = {}
    for at in found:
        if len(changed) > most:
            break
        (line,) = scheme.lines_of(first.slice(at, 1))
        values = {
            name: (first.column(name)[at].as_py(), second.column(name)[at].as_py())
            for name in names
            if masks[name][at].as_py()
        }
        changed.setdefault(line, Changed(keys.parse(line), values))
    if not many:
        return len(found), list(changed.values())[:most]
    lines = set(scheme.lines_of(first.take(found))) if found else set()
    for line in _of_other_counts(a, b, scheme):
        lines.add(line)
        changed.setdefault(line, Changed(keys.parse(line), {}))
    return len(lines), list(changed.values())[:most]


def _keyed(table: pa.Table, scheme: KeyScheme, number: str, many: bool) -> pa.Table:
    """The keys of the rows in columns that can be joined, with the row numbers."""
    import pyarrow as pa

    columns = {number: pa.array(range(table.num_rows), pa.int64())}
    types = [table.schema.field(name).type for name in scheme.columns]
    if all(pa.types.is_integer(kind) or pa.types.is_string(kind) for kind in types):
        columns |= {name: table.column(name) for name in scheme.columns}
    else:
        columns["key"] = pa.array([line.decode() for line in scheme.lines_of(table)])
    if many:
        seen: Counter[bytes] = Counter()
        nth = []
        for line in scheme.lines_of(table):
            nth.append(seen[line])
            seen[line] += 1
        columns[_NTH] = pa.array(nth, pa.int64())
    return pa.table(columns)


def _of_other_counts(a: pa.Table, b: pa.Table, scheme: KeyScheme) -> list[bytes]:
    """The keys that have rows in both, but different numbers of them."""
    one, other = (Counter(scheme.lines_of(table)) for table in (a, b))
    return [line for line in one.keys() & other.keys() if one[line] != other[line]]


def _differs(x: pa.ChunkedArray, y: pa.ChunkedArray) -> pa.ChunkedArray:
    """A mask of where two columns differ. Two nulls or two NaN are equal."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        same = pc.fill_null(pc.equal(x, y), False)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        # Lists, structs, JSON, or two types without a common type.
        pairs = zip(x.to_pylist(), y.to_pylist(), strict=True)
        return pa.chunked_array([pa.array([one != other for one, other in pairs], pa.bool_())])
    same = pc.or_(same, pc.and_(pc.is_null(x), pc.is_null(y)))
    if pa.types.is_floating(x.type) and pa.types.is_floating(y.type):
        nan = pc.and_(pc.is_nan(x), pc.is_nan(y))
        same = pc.or_(same, pc.fill_null(nan, False))
    return pc.invert(same)
