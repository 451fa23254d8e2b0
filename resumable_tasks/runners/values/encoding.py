r"""Encodes any value as JSON. Rows that do not fit the table are stored in this form.

JSON values stay as they are: null, true, false, text, lists, objects, and numbers of any length.
Any other value becomes an object with exactly one of these names::

    {"$float": "nan"}                         also inf, -inf
    {"$text": "so \ud83d"}                     text that UTF-8 cannot hold, in Python's escapes
    {"$bytes": "AAH/"}                        base64
    {"$decimal": "1.10"}
    {"$datetime": "2026-11-28T07:00:00+01:00"}, {"$date": …}, {"$time": …}     ISO 8601
    {"$timedelta": [days, seconds, microseconds]}
    {"$uuid": …}, {"$path": …}
    {"$complex": [real, imaginary]}
    {"$tuple": […]}, {"$set": […]}
    {"$dict": [[name, value], …]}             a dict whose names are not text, or only one of these
    {"$arrow": [type, number]}                a time or duration in a unit that Python lacks

`decode` returns an equal value.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from resumable_tasks.base.text import clean
from resumable_tasks.errors import BadResult

_MOST_DEEP = 200


class CannotEncode(BadResult):
    """The value has no form that can be stored and read back exactly."""


def encode(value: Any) -> Any:
    """Return the value as JSON, from which `decode` makes an equal value.

    Raises `CannotEncode` for an object of a class that is not listed above.
    """
    return _encode(value, 0)


def _encode(value: Any, depth: int) -> Any:
    if depth > _MOST_DEEP:
        raise CannotEncode(f"it is nested more than {_MOST_DEEP} levels deep")
    kind = type(value)
    if value is None or kind is bool or kind is int:
        return value
    if kind is str:
        return value if _is_utf8(value) else {"$text": value.encode("unicode_escape").decode()}
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [_encode(each, depth + 1) for each in value]
    if isinstance(value, dict):
        return _encode_dict(value, depth)
    return _encode_other(value, depth)


def _encode_dict(value: dict[Any, Any], depth: int) -> Any:
    pairs = [(name, _encode(each, depth + 1)) for name, each in value.items()]
    named = len(value) == 1 and next(iter(value)) in _READERS
    if not named and all(type(name) is str and _is_utf8(name) for name in value):
        return dict(pairs)
    return {"$dict": [[_encode(name, depth + 1), each] for name, each in pairs]}


def _encode_other(value: Any, depth: int) -> Any:
    if isinstance(value, (set, frozenset, tuple)):
        name = "$tuple" if isinstance(value, tuple) else "$set"
        return {name: [_encode(each, depth + 1) for each in value]}
    for kind, name, write in _WRITERS:
        if isinstance(value, kind):
            return {name: write(value)}
    if isinstance(value, list):
        return [_encode(each, depth + 1) for each in value]
    if isinstance(value, Enum):
        return _encode(value.value, depth + 1)
    if isinstance(value, (str, int, float)):
        return _encode(_without_class(value), depth + 1)
    if hasattr(value, "as_py") and hasattr(value, "value"):  # a scalar of Arrow
        return {"$arrow": [str(value.type), value.value]}
    if hasattr(value, "tolist") and hasattr(value, "dtype"):  # numpy, without importing it
        return _encode_numpy(value, depth)
    raise CannotEncode(
        f"cannot store exactly: {type(value).__module__}.{type(value).__qualname__} "
        f"{clean(repr(value), 100)}. Let the handler return plain values"
    )


def _without_class(value: str | float) -> str | float:
    """Return an instance of a subclass of str, int or float as that builtin type."""
    if isinstance(value, str):
        return str.__str__(value)
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)


def _encode_numpy(value: Any, depth: int) -> Any:
    plain = value.tolist()
    if type(plain) is type(value):
        raise CannotEncode(f"numpy has no plain form for {value.dtype}")
    return _encode(plain, depth + 1)


# In this order: a datetime is a date.
_WRITERS: tuple[tuple[type[Any], str, Callable[[Any], Any]], ...] = (
    (datetime, "$datetime", datetime.isoformat),
    (date, "$date", date.isoformat),
    (time, "$time", time.isoformat),
    (timedelta, "$timedelta", lambda it: [it.days, it.seconds, it.microseconds]),
    (Decimal, "$decimal", str),
    (bytes, "$bytes", lambda it: base64.b64encode(it).decode()),
    (bytearray, "$bytes", lambda it: base64.b64encode(it).decode()),
    (UUID, "$uuid", str),
    (PurePath, "$path", str),
    (complex, "$complex", lambda it: [_encode(it.real, 0), _encode(it.imag, 0)]),
)


def as_exact_text(value: Any) -> str:
    """Return the value as JSON text that `decode` can read. Raises `CannotEncode`."""
    return json.dumps(encode(value), ensure_ascii=False, allow_nan=False)


def as_text(value: Any) -> str | None:
    """Return the value as JSON text for any reader, encoded only if JSON has no form for it.

    None stays None. Raises `CannotEncode`.
    """
    if value is None:
        return None
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if _is_utf8(text) and json.loads(text) == value:  # false if a name was not text
            return text
    except (TypeError, ValueError, RecursionError):
        pass
    return as_exact_text(value)


def decode(value: Any) -> Any:
    """Return a value equal to the one given to `encode`. Raises `ValueError` for invalid input."""
    if isinstance(value, list):
        return [decode(each) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (name, inner) = next(iter(value.items()))
        if name in _READERS:
            return _decode_named(name, inner)
    return {name: decode(each) for name, each in value.items()}


def _decode_named(name: str, inner: Any) -> Any:
    try:
        return _READERS[name](inner)
    except (TypeError, ArithmeticError, binascii.Error) as error:
        raise ValueError(f"{name} does not hold what it says: {error}") from error


def _arrow_scalar(found: Any) -> Any:
    import pyarrow as pa

    kind, number = found
    return pa.scalar(number, pa.int64()).cast(_arrow_type(kind))


def _arrow_type(text: str) -> Any:
    import pyarrow as pa

    unit, _, zone = text.partition(", tz=")
    if not zone:
        return pa.type_for_alias(text)
    return pa.timestamp(unit.removeprefix("timestamp[").rstrip("]"), zone.rstrip("]"))


_READERS: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$text": lambda it: it.encode("ascii").decode("unicode_escape"),
    "$bytes": lambda it: base64.b64decode(it, validate=True),
    "$decimal": Decimal,
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$timedelta": lambda it: timedelta(*it),
    "$uuid": UUID,
    "$path": PurePath,
    "$complex": lambda it: complex(*map(decode, it)),
    "$tuple": lambda it: tuple(map(decode, it)),
    "$set": lambda it: set(map(decode, it)),
    "$dict": lambda it: {decode(name): decode(each) for name, each in it},
    "$arrow": _arrow_scalar,
}


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
