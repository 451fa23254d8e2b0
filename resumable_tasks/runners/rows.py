"""Rows as Python values, for checkpoints whose columns have types of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

from resumable_tasks.runners.values.plain import plain


def plain_row(row: Mapping[str, Any], json_columns: Set[str] = frozenset()) -> dict[str, Any]:
    """A copy of a row in plain classes.

    A copy, since the handler may go on to use its row before it is written. The values of the
    JSON columns are JSON text; what is none stays as it is, for the checkpoint to refuse.
    """
    return {
        name: _json_text(value) if name in json_columns else plain(value)
        for name, value in row.items()
    }


def _json_text(value: Any) -> Any:
    found = plain(value)
    try:
        return None if found is None else json.dumps(found)
    except (TypeError, ValueError, RecursionError):
        return found
