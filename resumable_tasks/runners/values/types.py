"""Types of columns: the type that holds given values, and the common type of two types.

A type is chosen only if each value can be read back unchanged; see docs/design/0020-values.md.
Structures without a common form become JSON; other values without a common type have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import reduce
from itertools import chain
from typing import Any
from uuid import UUID

import pyarrow as pa

from resumable_tasks.runners.values.jsontype import JSON, is_json

_MOST_DEEP = 32
_DIGITS, _MOST_DIGITS = 38, 76
# The most digits of a 64-bit integer.
_DIGITS_OF_INT = 20
_INT64, _UINT64 = 2**63, 2**64


class NoType(Exception):
    """No type holds all of these values."""


class NoPlace(Exception):
    """No column can hold a value. The message describes the value."""


def type_of(values: Sequence[Any]) -> pa.DataType:
    """Return the type that holds these plain values; JSON for structures without a common form.

    Raises `NoType`, or `NoPlace` if it meets a value that no column can hold.
    """
    try:
        return _type_of(values, 0)
    except NoType:
        if are_structures(values):
            return JSON
        raise


def are_structures(values: Iterable[Any]) -> bool:
    """True if all values are lists, dicts or None."""
    return {type(value) for value in values if value is not None} <= {list, dict}


def why_no_place(value: Any, depth: int = 0) -> str | None:
    """Return why no column, not even JSON, can hold this plain value; None if one can."""
    kind = type(value)
    if value is None or depth > _MOST_DEEP:
        return None
    if kind in (list, dict, tuple):
        within = chain(value, value.values()) if kind is dict else value
        found = (why_no_place(each, depth + 1) for each in within)
        return next((why for why in found if why is not None), None)
    try:
        _typed(kind, [value], depth)
    except NoPlace as why:
        return str(why)
    return None


def _type_of(values: Sequence[Any], depth: int) -> pa.DataType:
    if depth > _MOST_DEEP:
        raise NoType
    kinds = set(map(type, values))
    if len(kinds) == 1 and type(None) not in kinds:
        return _typed(kinds.pop(), values, depth)
    kinds.discard(type(None))
    if len(kinds) == 1:
        return _typed(kinds.pop(), [each for each in values if each is not None], depth)
    numbers = [value for value in values if type(value) is int] if float in kinds else ()
    if any(float(value) != value for value in numbers):
        raise NoType
    of_kind = ([value for value in values if type(value) is kind] for kind in kinds)
    found = (_typed(kind, some, depth) for kind, some in zip(kinds, of_kind, strict=True))
    return reduce(_joined, found, pa.null())


def _typed(kind: type, values: Sequence[Any], depth: int) -> pa.DataType:
    if kind is list:
        return pa.list_(_type_of(list(chain.from_iterable(values)), depth + 1))
    if kind is dict:
        names = values[0].keys()
        if not names or any(value.keys() != names for value in values):
            raise NoType
        if any(type(name) is not str or not _is_text(name) for name in names):
            raise NoType
        return pa.struct(
            [(name, _type_of([value[name] for value in values], depth + 1)) for name in names]
        )
    if (of_kind := _OF_KIND.get(kind)) is not None:
        return of_kind(values)
    if isinstance(values[0], pa.Scalar):
        return reduce(_joined, (value.type for value in values))
    raise NoPlace(f"of class {kind.__module__}.{kind.__qualname__}, which no column can hold")


def _text(values: Sequence[str]) -> pa.DataType:
    if not all(map(_is_text, values)):
        raise NoPlace("text with a lone surrogate, which cannot be encoded as UTF-8")
    return pa.string()


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _integer(values: Sequence[int]) -> pa.DataType:
    least, most = min(values), max(values)
    if least < -_INT64 or most >= _UINT64:
        raise NoPlace("an integer of more than 64 bits")
    if most < _INT64:
        return pa.int64()
    if least < 0:
        raise NoType
    return pa.uint64()


def _decimal(values: Sequence[Decimal]) -> pa.DataType:
    if not all(value.is_finite() for value in values):
        raise NoPlace("a decimal that is not a number (NaN or infinite)")
    whole = scale = 0
    for value in values:
        _, digits, exponent = value.as_tuple()
        assert isinstance(exponent, int)
        if value and len(digits) + abs(exponent) > 10 * _MOST_DIGITS:
            raise NoPlace(f"a decimal of more than {_MOST_DIGITS} digits")
        if not value:
            digits = ()
        whole, scale = max(whole, len(digits) + exponent), max(scale, -exponent)
    found = _decimal_type(whole, min(scale, _MOST_DIGITS))
    if found is None and len(values) == 1:
        raise NoPlace(f"a decimal of more than {_MOST_DIGITS} digits")
    if found is None:
        raise NoType
    return found


def _decimal_type(whole: int, scale: int) -> pa.DataType | None:
    digits = max(whole + scale, 1)
    if digits > _MOST_DIGITS:
        return None
    return pa.decimal128(digits, scale) if digits <= _DIGITS else pa.decimal256(digits, scale)


def _datetime(values: Sequence[datetime]) -> pa.DataType:
    aware = [value for value in values if value.utcoffset() is not None]
    try:
        for value in aware:
            value.astimezone(UTC)
    except OverflowError:
        raise NoPlace("a time with an offset whose year in UTC is outside 1 to 9999") from None
    if aware and len(aware) < len(values):
        raise NoType
    return pa.timestamp("us", "UTC" if aware else None)


def _time(values: Sequence[time]) -> pa.DataType:
    if any(value.tzinfo is not None for value in values):
        raise NoPlace("a time of day with an offset, which no type supports")
    return pa.time64("us")


def _timedelta(values: Sequence[timedelta]) -> pa.DataType:
    if any(abs(value) >= _LONGEST for value in values):
        raise NoPlace("a timedelta of more than 292,000 years")
    return pa.duration("us")


_LONGEST = timedelta(microseconds=_INT64 - 1)

_OF_KIND: dict[type, Callable[[Sequence[Any]], pa.DataType]] = {
    bool: lambda _: pa.bool_(),
    int: _integer,
    float: lambda _: pa.float64(),
    str: _text,
    bytes: lambda _: pa.binary(),
    Decimal: _decimal,
    datetime: _datetime,
    date: lambda _: pa.date32(),
    time: _time,
    timedelta: _timedelta,
    UUID: lambda _: pa.uuid(),
}


def _joined(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    found = join(a, b)
    if found is None or (is_json(found) and not (is_json(a) or is_json(b))):
        raise NoType
    return found


def join(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Return the common type of two types; None if there is none.

    Whether each value stays unchanged (an integer may become a float) is checked by
    `resumable_tasks.checkpoint.directory.schemas.keeps`.
    """
    found = _join(a, b)
    return JSON if found is None and is_structure(a) and is_structure(b) else found


def is_structure(kind: pa.DataType) -> bool:
    """True for lists, structs and maps of any kind, and for JSON."""
    return bool(
        is_json(kind) or _is_list(kind) or pa.types.is_struct(kind) or pa.types.is_map(kind)
    )


def _join(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if a.equals(b) or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _join_structs(a, b)
    if _is_list(a) and _is_list(b):
        within = _join(a.value_type, b.value_type)
        large = pa.types.is_large_list(a) or pa.types.is_large_list(b)
        return None if within is None else (pa.large_list if large else pa.list_)(within)
    if pa.types.is_decimal(a) or pa.types.is_decimal(b):
        return _join_decimals(a, b)
    if pa.types.is_timestamp(a) and pa.types.is_timestamp(b):
        if (a.tz is None) != (b.tz is None):
            return None
        return pa.timestamp(_finer(a.unit, b.unit), a.tz if a.tz == b.tz else "UTC")
    if pa.types.is_duration(a) and pa.types.is_duration(b):
        return pa.duration(_finer(a.unit, b.unit))
    for family in (_is_number, _is_string, _is_bytes, pa.types.is_date, pa.types.is_time):
        if family(a) and family(b):
            return _promoted(a, b)
    return None


def _join_structs(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    names = [field.name for field in a]
    if sorted(names) != sorted(field.name for field in b) or len(set(names)) < len(names):
        return None
    fields = [(name, _join(a.field(name).type, b.field(name).type)) for name in names]
    return None if any(kind is None for _, kind in fields) else pa.struct(fields)


def _join_decimals(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    sizes = []
    for kind in (a, b):
        if pa.types.is_decimal(kind):
            sizes.append((kind.precision - kind.scale, kind.scale))
        elif pa.types.is_integer(kind):
            sizes.append((_DIGITS_OF_INT, 0))
        else:
            return None
    return _decimal_type(max(whole for whole, _ in sizes), max(scale for _, scale in sizes))


def _promoted(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if pa.types.is_integer(a) and pa.types.is_integer(b) and pa.uint64() in (a, b):
        return pa.uint64()
    try:
        fields = [pa.schema([("", kind)]) for kind in (a, b)]
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def _finer(a: str, b: str) -> str:
    return max(a, b, key=("s", "ms", "us", "ns").index)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
