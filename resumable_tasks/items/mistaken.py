"""Recognises objects given as items, or as one item, by mistake, and says what to give instead."""

from __future__ import annotations

import inspect
import os
from typing import Any

from resumable_tasks.errors import InvalidItems

_FUTURES = frozenset(("prefect", "concurrent", "distributed", "ray"))


def refuse(items: Any) -> None:
    """Raise `InvalidItems` for items that must be awaited first, are used up, or are no items."""
    ended = inspect.isgenerator(items) and items.gi_frame is None
    if ended or (inspect.isasyncgen(items) and items.ag_frame is None):
        raise InvalidItems(
            "items is a generator that has already been consumed",
            remedy="Create a new one for each run",
        )
    if isinstance(items, type):
        raise InvalidItems(f"items is the class {items.__name__}", remedy=instead(items))
    if _is_column(items):
        raise InvalidItems(
            f"items is {_article(items)}, a column without a key",
            remedy="Give the data frame that it belongs to, or its values as a list",
        )
    first = items[0] if isinstance(items, (list, tuple)) and items else items
    if remedy := _to_get(first):
        one = "item 0" if first is not items else "items"
        raise InvalidItems(f"{one} is {_article(first)}, not its result", remedy=remedy)


def instead(items: Any) -> str:
    """Return what to give instead of items that cannot be iterated over."""
    if items is None:
        return "Give run() the items. If a function makes them, check that it has a `return`"
    if callable(getattr(items, "collect", None)):  # a lazy frame
        return "Give its result: .collect()"
    if callable(items):
        return f"Call it: {getattr(items, '__name__', 'function')}()"
    if isinstance(items, os.PathLike):
        return "Give its content, such as pyarrow.dataset.dataset(path) or the lines of the file"
    if isinstance(items, int):
        return f"Give range({items})"
    if callable(getattr(items, "table", None)):
        return "Give its rows: result.table(), or result.dataset()"
    return "Give a list, a generator, a table or a data frame"


def instead_of_item(item: Any) -> str:
    """Return what to give instead of an item without a key; "" if that is not known."""
    if isinstance(item, list):
        return (
            "Give items one by one: batch_size= makes batches. If each item is a list, give a "
            "callable: key=lambda item: item[0]"
        )
    if isinstance(item, (str, int)):
        return "Leave key= out: a string or an integer is its own key"
    if isinstance(item, tuple):
        return "Give dicts or named tuples, or a callable: key=lambda item: item[0]"
    return _to_get(item)


def _is_column(items: Any) -> bool:
    """True for a column of Arrow, polars or pandas, unless it holds structs: that is a table."""
    kind = type(items)
    if str(getattr(items, "type", getattr(items, "dtype", ""))).lower().startswith("struct"):
        return False
    if kind.__module__.startswith("pyarrow"):
        return hasattr(items, "to_pylist") and not hasattr(items, "schema")
    return kind.__name__ == "Series" and kind.__module__.startswith(("polars", "pandas"))


def kind_of(value: Any) -> str:
    """Describe the type of a value: ``a list``, ``an int``, ``None``."""
    return "None" if value is None else _article(value)


def _article(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _to_get(value: Any) -> str:
    """Return how to get the value of a coroutine, future or state; "" for other values."""
    kind = type(value)
    if inspect.iscoroutine(value):
        return "Await it and give its result"
    root, name = kind.__module__.partition(".")[0], kind.__name__
    if "asyncio" in root and name.endswith(("Future", "Task")):
        return "Await it and give its result"
    if root not in _FUTURES or not name.endswith(("Future", "State", "ObjectRef")):
        return ""
    if root == "ray":
        return "Give its value: ray.get(…)"
    return "Give its result: .result()"
