"""An exception in a handler → a record for each item that it affects."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from resumable_tasks.base.clock import now
from resumable_tasks.base.text import without_secrets
from resumable_tasks.errors import BadResult
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import Key
from resumable_tasks.runners.groups import message_of, name_of
from resumable_tasks.runners.outcome import Failure, Parked

_MESSAGE_CHARS = 1_000
_TRACEBACK_CHARS = 4_000
_TRACEBACK_FRAMES = -6


def records(
    batch: Batch, failed: Iterable[tuple[Key, BaseException | str]], attempts: int
) -> tuple[Failure, ...]:
    """Return a record for each failed item; an error shared by items is described once."""
    described: dict[int, tuple[str, str, str]] = {}
    time, batch_id = now(), batch.id
    found = []
    for key, error in failed:
        if id(error) not in described:
            described[id(error)] = describe(error)
        name, message, trace = described[id(error)]
        found.append(Failure(key, name, message, attempts, batch_id, time, trace))
    return tuple(found)


def of_bad_items(bad: Iterable[tuple[int, BaseException]]) -> list[Failure]:
    """Return a record for each item without a usable key; the run reports them at its end."""
    time = now()
    return [
        Failure(f"item {position}", *describe(error)[:2], 0, "", time, position=position)
        for position, error in bad
    ]


def whole_batch(batch: Batch, error: BaseException, attempts: int) -> tuple[Failure, ...]:
    """Return a record for each item of a batch whose handler raised."""
    return records(batch, ((key, error) for key in batch.keys), attempts)


def parked(batch: Batch, items: Iterable[Parked], attempts: int) -> tuple[Failure, ...]:
    """Return a record, with the complete rows, for each item whose rows do not fit the table.

    If a value cannot be encoded exactly, the item has failed instead.
    """
    from resumable_tasks.runners.values import encoding, tables

    found: list[Failure] = []
    taken = dict(zip(batch.keys, batch.fingerprints, strict=False))
    for key, rows, error in items:
        try:
            kept = tuple(encoding.encode(row) for row in rows)
        except encoding.CannotEncode as why:
            message = str(error)
            if str(why) not in message:
                # Storing it as JSON text, which the message suggests, would fail too.
                message = message.removesuffix(f". {tables.WAYS_OUT}")
                message += f". The item cannot be kept either: {why}"
            found += records(batch, [(key, BadResult(message))], attempts)
        else:
            record = records(batch, [(key, error)], attempts)[0]
            found.append(replace(record, rows=kept, fingerprint=taken.get(key, -1)))
    return tuple(found)


def add_earlier_attempts(
    failures: Sequence[Failure], earlier: Mapping[bytes, Failure]
) -> tuple[Failure, ...]:
    """Return the failures with the attempts of earlier runs added."""
    return tuple(
        replace(failure, attempts=failure.attempts + before.attempts)
        if (before := earlier.get(keys.canonical(failure.key)))
        else failure
        for failure in failures
    )


def with_items(failures: Sequence[Failure], batch: Batch) -> tuple[Failure, ...]:
    """Return the failures with their items, as JSON values."""
    items = batch.items if isinstance(batch.items, list) else batch.items.to_pylist()
    each = dict(zip(batch.keys, items, strict=True))
    return tuple(replace(failure, item=_as_json(each[failure.key])) for failure in failures)


def _as_json(item: Any) -> Any:
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        item = dataclasses.asdict(item)
    elif hasattr(item, "model_dump"):  # pydantic, without importing it
        item = item.model_dump()
    try:
        text = json.dumps(item, ensure_ascii=False, default=str, skipkeys=True)
    except Exception as error:  # noqa: BLE001 - circular, or a broken __str__; it is kept for people only
        text = json.dumps(f"(the item cannot be kept: {type(error).__name__})")
    # A lone surrogate cannot be encoded in UTF-8, which the journal uses.
    return json.loads(text.encode("utf-8", "replace"))


def describe(error: BaseException | str) -> tuple[str, str, str]:
    """Return the name of an error, its message and its traceback, safe to store and to show."""
    if isinstance(error, str):
        return "ItemFailure", _text(error, _MESSAGE_CHARS), ""
    message = message_of(error)
    trace = ""
    if error.__traceback__ is not None:
        trace = "".join(
            traceback.format_exception(
                type(error), error, error.__traceback__, limit=_TRACEBACK_FRAMES
            )
        )[-_TRACEBACK_CHARS:]
    return name_of(error), _text(message, _MESSAGE_CHARS), _text(trace, _TRACEBACK_CHARS)


def _text(value: str, limit: int) -> str:
    """Return the text without secrets, shortened, and valid in UTF-8."""
    return without_secrets(value[:limit]).encode("utf-8", "backslashreplace").decode()
