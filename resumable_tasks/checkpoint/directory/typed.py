"""Checks the types of a record's fields, so that later code can rely on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from resumable_tasks.checkpoint.directory import keyless
from resumable_tasks.checkpoint.directory.record import OF_SUBMISSIONS
from resumable_tasks.runners.outcome import Failure, Shard

_HEAD = ("kind", "run", "time", "nonce", "previous")
_COUNTS = ("keys", "failures", "retracted")
# The fields of `info` that decisions and counts depend on.
_INFO: dict[str, type | tuple[type, ...]] = {
    "accepted": int,
    "batches": int,
    "budget": (int, float),
    "copied": int,
    "cost": (int, float),
    "expected": int,
    "flow_run": str,
    "longest": (int, float),
    "max_attempts": int,
    "merged": list,
    "names": dict,
    "retracted_shards": list,
    "stands_for": str,
    "version": str,
    **dict.fromkeys(("total", "completed", "skipped", "failed", "parked", "duplicates"), int),
    "how": str,
    "seconds": (int, float),
    "token": str,
    "settled": list,
    "by": str,
    "why": str,
    "expected_cost": (int, float),
}


def check(
    head: Mapping[str, Any],
    end: Mapping[str, Any],
    shards: Collection[Shard],
    failures: Iterable[Failure],
) -> None:
    """Raise ``TypeError`` or ``KeyError`` if a field has the wrong type or is missing.

    Checksums find accidents. This check makes a file that was made by hand raise the same errors as
    damage.
    """
    texts: list[Any] = [head[name] for name in _HEAD]
    numbers: list[Any] = [head["number"], head["epoch"], *(end[name] for name in _COUNTS)]
    for shard in shards:
        texts += (shard.path, shard.checksum)
        numbers += (shard.rows, shard.bytes, shard.keys)
    for failure in failures:
        texts += (failure.error, failure.message, failure.batch, failure.time, failure.traceback)
        texts.append(failure.error_of)
        numbers.append(failure.attempts)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a field that must be a string is not")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise TypeError("a field that must be a number is not")
    if not isinstance(head.get("schema", ""), str):
        raise TypeError("its schema is not a string")
    _check_info(head.get("info", {}))
    if head["kind"] == "merge":
        _check_merge(head["info"], end, len(shards))
    if head["kind"] in OF_SUBMISSIONS:
        _check_submission(head["kind"], head["info"], end)


def _check_info(info: Any) -> None:
    if not isinstance(info, dict):
        raise TypeError("its info is not an object")
    for name, wanted in _INFO.items():
        if info.get(name) is not None and not isinstance(info[name], wanted):
            raise TypeError(f"{name} in its info has the wrong type")
    if not all(isinstance(path, str) for path in info.get("retracted_shards") or ()):
        raise TypeError("a retracted shard is not a path")
    if not all(type(parts) is int and parts > 0 for parts in info.get("merged") or ()):
        raise TypeError("the parts of a merged shard are not a number")
    if not all(isinstance(token, str) for token in info.get("settled") or ()):
        raise TypeError("a settled submission has no token")
    keyless.read(info, "")


def _check_merge(info: Any, end: Mapping[str, Any], shards: int) -> None:
    parts, paths = info["merged"], info["retracted_shards"]
    if len(parts) != shards or sum(parts) != len(paths) or end["keys"] or end["retracted"]:
        raise TypeError("its merged shards and their parts do not match")


def _check_submission(kind: str, info: Any, end: Mapping[str, Any]) -> None:
    wanted = {"prepared": "prepared", "submitted": "handle", "withdrawn": "settled"}.get(kind)
    if not info["token"] or (wanted is not None and info[wanted] is None):
        raise TypeError("it does not name its submission, or what happened to it")
    if (kind == "submitting") != bool(end.get("out")):
        raise TypeError("it names submitted keys where it must not, or none where it must")
