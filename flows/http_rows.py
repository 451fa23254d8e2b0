"""The handler for records of an HTTP API: a row for each, with its detail fetched if there is one.

The types of the columns are given, by `HttpApi.schema`, or there is but one column, of JSON text:
never are they guessed from values, so that all dates together are one dataset.
"""

from __future__ import annotations

import datetime
import json
import reprlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from flows.http_api import RECORD, HttpApi
from flows.http_pages import Record
from resumable_tasks import ItemFailure, ResumableTasksError, resumable_task


class BadField(ResumableTasksError):
    """A field of a record is not what the schema says."""


@resumable_task(name="nightly_ingest_api", key="id", on_duplicate="skip")
def ingest_records(records: list[Record]) -> list[dict[str, Any] | ItemFailure]:
    """The handler: a batch of records in, a row or a failure for each of them out."""
    return [_row_or_failure(record) for record in records]


def _row_or_failure(record: Record) -> dict[str, Any] | ItemFailure:
    key = record[record.client.api.key]
    try:
        return row_of(_with_detail(record, key), record.client.api)
    except ResumableTasksError as error:
        return ItemFailure(key, error)  # recorded, and tried again by the next run


def _with_detail(record: Record, key: str | int) -> dict[str, Any]:
    client, name = record.client, record.client.api.key
    url = client.api.detail_of(key)
    if url is None:
        return record
    detail = client.get(url, "detail").json
    if not isinstance(detail, dict):
        raise BadField(f"detail, {client.shown(url)}: it is no JSON object")
    if str(detail.get(name, key)) != str(key):
        raise BadField(f"detail, {client.shown(url)}: its {name!r} is {reprlib.repr(detail[name])}")
    return {**record, **detail, name: key}


def row_of(record: dict[str, Any], api: HttpApi) -> dict[str, Any]:
    """The row of a record: its key, and a value of the given type for each other column."""
    if api.schema is None:
        return {api.key: record[api.key], RECORD: _converted(RECORD, record, "json")}
    columns = {name: kind for name, kind in api.schema.items() if name != api.key}
    return {
        api.key: record[api.key],
        **{name: _converted(name, record.get(name), kind) for name, kind in columns.items()},
    }


def _converted(name: str, value: Any, kind: str) -> pa.Scalar:
    """A value as the column's type, or `BadField`: nothing is rounded or guessed."""
    column, convert = _COLUMNS[kind]
    try:
        return pa.scalar(None if value is None else convert(value), column)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # (Arrow's errors are among these.)
        raise BadField(f"field {name!r} is no {kind}: {reprlib.repr(value)} ({error})") from None


def _as_it_is(value: Any) -> Any:
    return value


def _text(value: Any) -> str:
    if isinstance(value, (dict, list)):
        raise TypeError("say json for an object or a list")
    return value if isinstance(value, str) else json.dumps(value)


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text):
        return text
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _integer(value: Any) -> int:
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    raise TypeError("it is no whole number")


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError("it is no number")
    return float(value)


def _moment(value: Any) -> datetime.datetime:
    """ISO 8601; without a time zone it is UTC."""
    if not isinstance(value, str):
        raise TypeError("it is no text in ISO 8601")
    found = datetime.datetime.fromisoformat(value)
    if found.tzinfo is None:
        return found.replace(tzinfo=datetime.UTC)
    return found.astimezone(datetime.UTC)  # or it is before the first year there, or after the last


_COLUMNS: dict[str, tuple[pa.DataType, Callable[[Any], Any]]] = {
    "string": (pa.string(), _text),
    "int64": (pa.int64(), _integer),
    "float64": (pa.float64(), _number),
    "bool": (pa.bool_(), _as_it_is),  # Arrow takes nothing else for one
    "timestamp": (pa.timestamp("us", tz="UTC"), _moment),
    "json": (pa.string(), _json),
}
