"""Converts values of the many classes that handlers return to the few that columns are made of.

These are None, bool, int, float, str, bytes, Decimal, UUID, the four classes of ``datetime``,
lists, dicts, and Arrow's scalars for times and durations in nanoseconds. A value of an unknown
class stays as it is; the column then reports that it cannot hold it.
"""

from __future__ import annotations

import dataclasses
from collections import UserString
from collections.abc import (
    Callable,
    ItemsView,
    KeysView,
    Mapping,
    Sequence,
    Set,
    ValuesView,
)
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import PurePath
from typing import Any
from uuid import UUID

MOST_DEEP = 200
_MOST_OF_RANGE = 1_000_000
_AS_THEY_ARE = frozenset({type(None), bool, int, float, str, bytes, Decimal, UUID, date, time})
_TEXT = frozenset({str})
_LEAVES = _AS_THEY_ARE | {datetime, timedelta}
_TEXTS = (
    *(PurePath, IPv4Address, IPv6Address),
    *(IPv4Interface, IPv6Interface, IPv4Network, IPv6Network),
)
# Kinds with an order: the views of a dict are sets, but keep the order of the dict.
_LISTS = (Sequence, KeysView, ItemsView, ValuesView)
_NO_VALUE = frozenset({"NAType", "NaTType"})


def plain(value: Any, depth: int = 0) -> Any:
    """Return the value in plain classes, at any depth."""
    kind = type(value)
    if kind in _LEAVES or depth > MOST_DEEP:
        return value
    if kind is list or kind is tuple:
        if _LEAVES.issuperset(map(type, value)):
            return value if kind is list else list(value)
        return [plain(each, depth + 1) for each in value]
    if kind is dict:
        if _LEAVES.issuperset(map(type, value.values())) and _TEXT.issuperset(map(type, value)):
            return value
        return {_name(name): plain(each, depth + 1) for name, each in value.items()}
    fields = fields_of(value)
    if fields is not None:
        return plain(fields, depth + 1)
    return _other(value, depth)


def fields_of(value: Any) -> dict[Any, Any] | None:
    """Return the fields of a mapping, dataclass, model or named tuple; None for other values.

    Pydantic, attrs, msgspec and SQLAlchemy are recognised by their attributes, without importing
    them.
    """
    if isinstance(value, type):
        return None
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        dumped: dict[str, Any] = value.model_dump()
        return dumped
    kind = type(value)
    if hasattr(kind, "__attrs_attrs__"):
        return {each.name: getattr(value, each.name) for each in kind.__attrs_attrs__}
    if hasattr(kind, "__struct_fields__"):
        return {name: getattr(value, name) for name in kind.__struct_fields__}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        named: dict[str, Any] = value._asdict()
        return named
    return None


def _name(name: Any) -> Any:
    """Return the name of a field; instances of str subclasses, such as enums, become str."""
    return name if type(name) in (str, tuple, frozenset) else plain(name)


def _other(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind.__name__ in _NO_VALUE and kind.__module__.startswith("pandas"):
        return None
    if isinstance(value, Enum):
        return plain(value.value, depth + 1)
    if isinstance(value, _TEXTS) or _is_url(value):
        return str(value)
    for base, convert in _SUBCLASSES:
        if isinstance(value, base):
            return convert(value)
    if isinstance(value, (list, tuple)):
        return [plain(each, depth + 1) for each in value]
    if isinstance(value, (set, frozenset)):
        return _in_order([plain(each, depth + 1) for each in value])
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # numpy, pandas and their kin
        return _numpy(value, depth)
    if hasattr(value, "as_py"):  # Arrow
        return value if _is_nanoseconds(value.type) else plain(value.as_py(), depth + 1)
    if kind.__module__ == "pyarrow.lib" and hasattr(value, "to_pylist"):
        return plain(value.to_pylist(), depth + 1)
    if hasattr(value, "to_arrow") and hasattr(value, "dtype"):  # a polars series
        # Arrow keeps nanoseconds, but would only receive the addresses of Python objects.
        found = value.to_list() if "Object" in str(value.dtype) else value.to_arrow()
        return [plain(each, depth + 1) for each in found]
    if isinstance(value, UserString):
        return plain(value.data, depth + 1)
    if isinstance(value, _LISTS) and not _is_endless(value):
        return [plain(each, depth + 1) for each in value]
    if isinstance(value, Set):
        return _in_order([plain(each, depth + 1) for each in value])
    return value


def _is_endless(value: Any) -> bool:
    """True for a range whose members may not fit into memory."""
    return isinstance(value, range) and bool(value[_MOST_OF_RANGE:])


def _is_url(value: Any) -> bool:
    return type(value).__module__.startswith("pydantic") and hasattr(value, "unicode_string")


def _in_order(values: list[Any]) -> list[Any]:
    """Return the members of a set in an order that is the same in every process."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=repr)


def _datetime(value: datetime) -> Any:
    # Only pandas' class has nanoseconds.
    if getattr(value, "nanosecond", 0):
        return _nanoseconds("timestamp", value, value.tzinfo)
    return datetime(
        *(value.year, value.month, value.day, value.hour, value.minute, value.second),
        value.microsecond,
        value.tzinfo,
        fold=value.fold,
    )


def _timedelta(value: timedelta) -> Any:
    if getattr(value, "nanoseconds", 0):
        return _nanoseconds("duration", value, None)
    return timedelta(value.days, value.seconds, value.microseconds)


def _nanoseconds(kind: str, value: Any, zone: Any) -> Any:
    import pyarrow as pa

    number = value.as_unit("ns").value if hasattr(value, "as_unit") else value.value
    if kind == "duration":
        return pa.scalar(number, pa.duration("ns"))
    return pa.scalar(number, pa.timestamp("ns", "UTC" if zone is not None else None))


def _is_nanoseconds(kind: Any) -> bool:
    import pyarrow as pa

    return bool((pa.types.is_timestamp(kind) or pa.types.is_duration(kind)) and kind.unit == "ns")


def _numpy(value: Any, depth: int) -> Any:
    import pyarrow as pa

    letter = getattr(value.dtype, "kind", "")
    if letter in "mM" and not getattr(value, "ndim", 0):
        found = value.item()
        if type(found) is not int:
            return found
        try:  # nanoseconds, for which Python has no class
            scalar = pa.scalar(value)
        except (pa.ArrowException, TypeError, ValueError):
            return value
        return scalar if scalar.value % 1_000 else _microseconds(scalar)
    found = value.tolist() if letter not in "mMO" else list(value)
    return value if type(found) is type(value) else plain(found, depth + 1)


def _microseconds(scalar: Any) -> Any:
    import pyarrow as pa

    kind = pa.duration if pa.types.is_duration(scalar.type) else pa.timestamp
    return scalar.cast(kind("us")).as_py()


# In this order: a datetime is a date.
_SUBCLASSES: tuple[tuple[type[Any] | tuple[type[Any], ...], Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    ((bytes, bytearray, memoryview), bytes),
    (datetime, _datetime),
    (date, lambda it: date(it.year, it.month, it.day)),
    (timedelta, _timedelta),
    (Decimal, Decimal),
    (UUID, lambda it: UUID(int=it.int)),
)
