"""Rows as Python values, for checkpoints whose columns have their own types."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from typing import Any

from resumable_tasks.runners.values.plain import plain


def plain_row(row: Mapping[str, Any], json_columns: Set[str] = frozenset()) -> dict[str, Any]:
    """Return a copy of a row with values of plain types.

    A copy, because the handler may change its row before it is written. Values of the JSON columns
    become JSON text; a value that has no JSON form stays as it is, and the checkpoint refuses it.
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
