"""Recognises the items given: rows to iterate over, or Arrow data; refuses everything else."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import InvalidItems
from resumable_tasks.items import mistaken

if TYPE_CHECKING:
    import pyarrow as pa

_MOST_AHEAD = 1_000_000


def made_ahead(items: Any) -> bool:
    """True for a list or a table: it is planned completely before the first call, so that an error
    in it costs nothing. Not for millions of items, whose batches would take too much memory.
    """
    # Only these libraries: ``len`` of a lazy database query would run another query.
    there = type(items).__module__.startswith(("pyarrow", "polars", "pandas"))
    table = there and hasattr(items, "__len__") and hasattr(items, "__arrow_c_stream__")
    return (table or isinstance(items, (list, tuple))) and len(items) <= _MOST_AHEAD


def is_read_by_iteration(items: Any) -> bool:
    """True if reading the items runs user code for each item, such as a generator's."""
    return (
        isinstance(items, Iterable)
        and not isinstance(items, (str, bytes, bytearray, list, tuple, Mapping, Set, range))
        and not is_arrow(items)
    )


def is_arrow(items: Any) -> bool:
    # All Arrow objects and data frames have the capsule interface, except datasets.
    return (
        hasattr(items, "__arrow_c_stream__")
        or hasattr(items, "__arrow_c_array__")
        or (hasattr(items, "to_batches") and hasattr(items, "scanner"))
    )


def record_batches(items: Any) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    from resumable_tasks.items import arrow

    if hasattr(items, "scanner"):
        return arrow.record_batches(iter(items.to_batches()))
    if hasattr(items, "__arrow_c_stream__"):
        return arrow.record_batches(iter(pa.RecordBatchReader.from_stream(items)))
    return arrow.record_batches(iter([pa.record_batch(items)]))


def rows(items: Any) -> Iterable[Any]:
    if isinstance(items, (str, bytes, bytearray)):
        raise InvalidItems(
            f"items is one {type(items).__name__}, which would be iterated character by character; "
            "give a list of items"
        )
    if isinstance(items, Mapping):
        raise InvalidItems("items is a mapping; give its .values(), .items() or .keys()")
    if isinstance(items, AsyncIterable):
        raise InvalidItems("items is an async iterable", remedy="Use `await task.arun(items, …)`")
    if not isinstance(items, Iterable):
        raise InvalidItems(
            f"items is {mistaken.kind_of(items)}, which cannot be iterated over",
            remedy=mistaken.instead(items),
        )
    return items
