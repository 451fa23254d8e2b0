"""The cost of a call, computed from its results, whether or not they can be stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.runners.outcome import CallOutcome, Cost, ItemFailure
from resumable_tasks.runners.values.frames import is_arrow


def readable(returned: Any) -> Any:
    """Return a handler's value in a form that can be read twice, for its rows and its cost."""
    if type(returned) is list:
        return returned
    if is_stream(returned):
        return returned.read_all() if hasattr(returned, "read_all") else returned
    return list(returned) if isinstance(returned, Iterator) else returned


def is_stream(returned: Any) -> bool:
    """True for objects that Arrow can read as a stream: tables, readers and data frames."""
    return hasattr(returned, "__arrow_c_stream__")


def cost_of(cost: Cost, call: CallOutcome) -> float:
    """Return the cost of a call; NaN if it is unknown, and then the engine ends the run."""
    try:
        return float(cost(call)) if callable(cost) else _of_rows(cost, call.returned)
    except Exception:  # noqa: BLE001 - logged; rows that are paid for are kept
        log.exception("batch %d: cost=%r gave no cost", call.batch.number, cost)
        return math.nan


def cost_of_failed(cost: Cost, call: CallOutcome) -> float:
    """Return the cost of a failed call; 0 if ``cost`` is a field and there are no rows."""
    if callable(cost):
        return cost_of(cost, call)
    try:
        return _of_rows(cost, call.returned)
    except Exception:  # noqa: BLE001 - the value is not even rows, so its items have failed
        return 0.0


def _of_rows(field: str, returned: Any) -> float:
    """Sum up the field over all rows. A row without it is free; raise if no row has it."""
    if returned is None or (isinstance(returned, list) and not returned):
        return 0.0
    if is_arrow(returned):
        parts = returned if isinstance(returned, list) else [returned]
        return math.fsum(_of_table(field, part) for part in parts)
    rows = [row for row in returned if row is not None and type(row) is not ItemFailure]
    if is_arrow(rows):
        return _of_rows(field, rows)
    found = [_value(row, field) for row in rows]
    if rows and all(value is _ABSENT for value in found):
        raise KeyError(field)
    return math.fsum(float(value) for value in found if value is not _ABSENT and value is not None)


_ABSENT = object()


def _value(row: Any, field: str) -> Any:
    value = row.get(field, _ABSENT) if isinstance(row, dict) else getattr(row, field, _ABSENT)
    if isinstance(value, str):
        raise TypeError(f"{field} is the text {value!r}")
    return value


def _of_table(field: str, returned: Any) -> float:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(returned, (pa.Table, pa.RecordBatch)):
        stream = hasattr(returned, "__arrow_c_stream__")
        returned = pa.table(returned) if stream else pa.record_batch(returned)
    return float(pc.sum(returned.column(field)).as_py() or 0.0)
