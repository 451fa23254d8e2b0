"""``schema=``: the declared columns, and arrays of exactly their types."""

from __future__ import annotations

import dataclasses
import types as python_types
import typing
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import chain
from pathlib import PurePath
from typing import Any, Literal
from uuid import UUID

import pyarrow as pa

from resumable_tasks.errors import BadResult, UsageError
from resumable_tasks.items import arrow
from resumable_tasks.items.keys import shorten
from resumable_tasks.runners.values import build, jsontype, storable
from resumable_tasks.runners.values.columns import json_field
from resumable_tasks.runners.values.plain import plain
from resumable_tasks.runners.values.tables import WAYS_OUT, Odd

_OPEN = pa.null()


def schema_of(said: Any) -> pa.Schema:
    """Return the schema that ``schema=`` declares. Raises `UsageError`.

    Fields annotated as a dict, ``Any`` or a union become JSON text. If an annotation leaves the
    type open (a ``datetime`` with or without an offset, a ``Decimal`` of any scale), the type is
    null and is inferred from the values.
    """
    if isinstance(said, pa.Schema):
        return _checked(said)
    if not isinstance(said, type) or not (hints := _annotations(said)):
        raise UsageError(
            f"schema={shorten(said)} is neither a pyarrow.Schema nor a class with annotated "
            "fields, such as a pydantic model or a dataclass",
            remedy="Give schema= one of the two",
        )
    found = {name: _type(hint) for name, hint in hints.items()}
    return _checked(
        pa.schema(
            json_field(name) if kind is None else pa.field(name, kind)
            for name, kind in found.items()
        )
    )


def _checked(schema: pa.Schema) -> pa.Schema:
    """Return the schema in types that shards can store. Raises `UsageError`."""
    if len(set(schema.names)) < len(schema.names):
        raise UsageError("schema= names a column twice", remedy="Name each column once")
    for field in schema:
        if not storable.is_storable(field.type):
            raise UsageError(
                f"schema=: column {field.name!r} is {field.type}, which Parquet does not support",
                remedy="Declare another type, or put the column into json_columns=",
            )
    return pa.schema([each.with_type(arrow.plain(each.type)) for each in schema])


def _annotations(schema: type) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(schema, include_extras=False)
    except (NameError, TypeError) as error:
        raise UsageError(
            f"schema={schema.__name__}: its annotations cannot be read: {error}",
            remedy="Import the types it names in the module that defines it, or give a "
            "pyarrow.Schema",
        ) from error
    if dataclasses.is_dataclass(schema):
        return {each.name: hints[each.name] for each in dataclasses.fields(schema)}
    if hasattr(schema, "model_fields"):
        return {name: hints[name] for name in schema.model_fields}
    return {
        name: hint for name, hint in hints.items() if typing.get_origin(hint) is not typing.ClassVar
    }


_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    bytes: pa.binary(),
    date: pa.date32(),
    time: pa.time64("us"),
    timedelta: pa.duration("us"),
    datetime: _OPEN,
    Decimal: _OPEN,
    type(None): _OPEN,
}
if hasattr(pa, "uuid"):
    _TYPES[UUID] = pa.uuid()


def _type(hint: Any) -> pa.DataType | None:
    """Return the type for an annotation: None means JSON text, the null type means open."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _TYPES:
        return _TYPES[hint]
    if origin in (typing.Union, python_types.UnionType):
        some = [each for each in arguments if each is not type(None)]
        return _type(some[0]) if len(some) == 1 else None
    if origin is Literal:
        kinds = {type(each) for each in arguments if each is not None}
        return _type(*kinds) if len(kinds) == 1 else None
    if origin in (list, set, frozenset) or (origin is tuple and arguments[1:] == (...,)):
        within = _type(arguments[0])
        return None if within is None or _OPEN in (within,) else pa.list_(within)
    return _type_of_class(hint) if isinstance(hint, type) else None


def _type_of_class(hint: type) -> pa.DataType | None:
    if issubclass(hint, Enum):
        kinds = {type(each.value) for each in hint}
        return _type(*kinds) if len(kinds) == 1 else None
    for kind in (str, PurePath):
        if issubclass(hint, kind) or hint.__module__.startswith("pydantic.networks"):
            return pa.string()
    if dataclasses.is_dataclass(hint) or hasattr(hint, "model_fields"):
        fields = {name: _type(each) for name, each in _annotations(hint).items()}
        if not fields or any(kind is None or kind.equals(_OPEN) for kind in fields.values()):
            return None
        return pa.struct(list(fields.items()))
    return None


def column(field: pa.Field, values: list[Any]) -> tuple[pa.Array | None, Odd]:
    """Return the column in exactly this type; or None and the values that do not fit exactly."""
    values = list(map(plain, values))
    if not pa.types.is_floating(field.type):
        values = [None if type(it) is float and it != it else it for it in values]
    why = _why_unfit(values, field.type)
    if why is None and (field.nullable or not any(value is None for value in values)):
        try:
            return _array(values, field.type), {}
        except (pa.ArrowException, TypeError, ValueError, OverflowError, BadResult):
            pass
    odd: Odd = {}
    for at, value in enumerate(values):
        why = _why_alone(value, field)
        if why is not None:
            odd[at] = (
                f"column {field.name!r} is {shorten(value)} here, and {field.type} by schema=: "
                f"{why}. {WAYS_OUT}"
            )
    return None, odd


def _why_alone(value: Any, field: pa.Field) -> str | None:
    if value is None:
        return None if field.nullable else "the schema allows no null"
    why = _why_unfit([value], field.type)
    if why is not None:
        return why
    try:
        _array([value], field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, BadResult) as error:
        return str(error)
    return None


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = [str(value) if type(value) is UUID else value for value in values]
    if jsontype.is_json(kind):
        return jsontype.column(values)
    return build.array(values, kind)


def _why_unfit(values: list[Any], kind: pa.DataType) -> str | None:
    """Return why plain values do not have this type, where Arrow would convert them anyway."""
    there = [value for value in values if value is not None]
    if pa.types.is_struct(kind):
        return _why_no_struct(there, kind)
    if pa.types.is_map(kind):
        return (
            None if all(type(value) in (dict, list) for value in there) else ("it is not a mapping")
        )
    if kind.num_fields:
        if any(type(value) is not list for value in there):
            return "it is not a list"
        return _why_unfit(list(chain.from_iterable(there)), kind.value_type)
    for test, wanted in _KINDS:
        if test(kind):
            odd = next((value for value in there if type(value) not in wanted), None)
            if odd is not None:
                return f"it is of type {type(odd).__name__}"
    broken = (type(value) is float and not value.is_integer() for value in there)
    if pa.types.is_integer(kind) and any(broken):  # Arrow would drop the fraction
        return "it is not a whole number"
    if pa.types.is_timestamp(kind):
        for value in there:
            if type(value) is datetime and (value.utcoffset() is None) != (kind.tz is None):
                return "it has " + ("an offset" if kind.tz is None else "no offset")
    return None


def _why_no_struct(values: list[Any], kind: pa.DataType) -> str | None:
    names = {field.name for field in kind}
    for value in values:
        if type(value) is not dict:
            return "it is not a dict"
        if not value.keys() <= names:
            return f"it has a field {shorten(next(name for name in value if name not in names))}"
    found = (_why_unfit([value.get(field.name) for value in values], field.type) for field in kind)
    return next((why for why in found if why is not None), None)


_KINDS: tuple[tuple[Any, tuple[type, ...]], ...] = (
    (pa.types.is_boolean, (bool,)),
    (pa.types.is_integer, (int, float)),
    (pa.types.is_floating, (int, float)),
    (pa.types.is_decimal, (int, Decimal)),
    (pa.types.is_string, (str, UUID)),
    (pa.types.is_large_string, (str, UUID)),
    (pa.types.is_binary, (bytes,)),
    (pa.types.is_large_binary, (bytes,)),
    (pa.types.is_fixed_size_binary, (bytes,)),
    (pa.types.is_timestamp, (datetime, pa.TimestampScalar)),
    (pa.types.is_date, (date,)),
    (pa.types.is_time, (time,)),
    (pa.types.is_duration, (timedelta, pa.DurationScalar)),
)
