"""Signs in a progress line that its item has failed or is not done.

Knows the outputs of OpenAI's and Anthropic's batch APIs, and usual fields of programs. A sign that
is known neither as success nor as failure is unclear, and the user must decide, because an item
that wrongly counts as done is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys

Verdict = Literal["done", "failed", "unclear"]

_DONE = {
    *("ok", "okay", "success", "successful", "succeeded", "good", "pass", "passed", "no_error"),
    *("done", "complete", "completed", "finished", "processed"),
}
_NOT_DONE = {
    *("err", "ko", "crashed", "killed", "expired", "rejected", "refused", "denied", "invalid"),
    *("timed_out", "interrupted", "unavailable", "rate_limited", "throttled", "dead"),
    *("pending", "queued", "scheduled", "waiting", "todo", "not_started", "incomplete", "new"),
    *("started", "running", "processing", "in_progress", "retry", "retrying", "partial"),
}
_BAD_PART = re.compile(r"error|fail|exception|timeout|abort|cancel")
_NO_ERROR = {"", "none", "null", "nan", "n/a", "false", "0"}
_HTTP = re.compile(r"(?:http[ /_-]?)?([1-5][0-9][0-9])\b.*", re.DOTALL)
# Fields whose objects contain signs: OpenAI's `response` and its `body`, and `result` of both.
_ENVELOPES = ("response", "body", "result")


def _of_status(value: Any) -> Verdict:
    if isinstance(value, bool):
        return "done" if value else "failed"
    if isinstance(value, int):
        return _of_code(value)
    word = value.strip().lower().replace(" ", "_").replace("-", "_") if _is_text(value) else ""
    if word in _DONE:
        return "done"
    if word in _NOT_DONE or _BAD_PART.search(word):
        return "failed"
    return _of_code(value)


def _of_code(value: Any) -> Verdict:
    """Judge an HTTP status code."""
    found = _HTTP.fullmatch(str(value).strip().lower()) if not isinstance(value, bool) else None
    if found is None:
        return "unclear"
    return "done" if found[1].startswith("2") else "failed"


def _of_exit(value: Any) -> Verdict:
    if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]+", str(value)):
        return "unclear"
    return "done" if int(value) == 0 else "failed"


def _of_error(value: Any) -> Verdict:
    none = not value or value != value
    return "done" if none or (_is_text(value) and value.strip().lower() in _NO_ERROR) else "failed"


def _of_flag(value: Any) -> Verdict:
    word = value.strip().lower() if _is_text(value) else value
    if word in (True, "true", "yes", "1") or word in _DONE:
        return "done"
    return "failed" if word in (False, "false", "no", "0") else "unclear"


def _of_type(value: Any) -> Verdict:
    """Judge the ``type`` of Anthropic's results; other objects use this field otherwise."""
    return "failed" if value in ("errored", "canceled", "expired") else "done"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# By field name, in lower case and without separators.
_JUDGES: dict[str, Callable[[Any], Verdict]] = {
    **dict.fromkeys(("status", "state"), _of_status),
    **dict.fromkeys(("statuscode", "httpstatus", "httpstatuscode", "httpcode"), _of_code),
    **dict.fromkeys(("exitcode", "exitstatus", "returncode"), _of_exit),
    **dict.fromkeys(
        (
            *("error", "errors", "err", "errormessage", "errormsg", "errortype", "errorcode"),
            *("exception", "exc", "traceback", "failure", "failurereason", "failed"),
            *("iserror", "haserror", "timedout"),
        ),
        _of_error,
    ),
    **dict.fromkeys(
        ("ok", "success", "succeeded", "issuccess", "done", "completed", "finished"), _of_flag
    ),
}
_IN_RESULT = {**_JUDGES, "type": _of_type}


class Signs:
    """Judges lines by their signs, and by the user's rules about fields and values.

    ``done_if`` and ``failed_if`` are texts ``FIELD=VALUE``; the value ``*`` matches any.
    """

    def __init__(self, done_if: Iterable[str] = (), failed_if: Iterable[str] = ()) -> None:
        self._told: dict[tuple[str, str], Verdict] = {}
        for verdict, texts in (("done", done_if), ("failed", failed_if)):
            for text in texts:
                field, equals, value = text.partition("=")
                if not equals or not field:
                    raise UsageError(
                        f"{text!r} is not FIELD=VALUE, such as status=shipped",
                        remedy="Give a field and its value in completed records",
                    )
                self._told[field, value] = "done" if verdict == "done" else "failed"
        self._fields = [field.split(".") for field in dict.fromkeys(f for f, _ in self._told)]

    def judge(self, row: Mapping[str, Any], names: Sequence[str]) -> tuple[Verdict, str, Any]:
        """The verdict on a line, with the field and value that decided it.

        ``names`` are the fields to look at; see `looked_at`.
        """
        unclear: tuple[str, Any] | None = None
        for path, value, verdict in self._signs(row, names):
            if verdict == "failed":
                return "failed", path, value
            if verdict == "unclear" and unclear is None:
                unclear = path, value
        return ("unclear", *unclear) if unclear is not None else ("done", "", None)

    def looked_at(self, rows: Iterable[Mapping[str, Any]], key: Sequence[str]) -> list[str]:
        """The fields, other than the key's, that may hold a sign in any of these lines."""
        told = {path[0] for path in self._fields}
        found = dict.fromkeys(name for row in rows for name in row)
        signs = {name for name in found if _plain(name) in _JUDGES or name in _ENVELOPES}
        return [name for name in found if name in told or name in signs.difference(key)]

    def _signs(
        self, row: Mapping[str, Any], names: Sequence[str]
    ) -> Iterator[tuple[str, Any, Verdict]]:
        for path in self._fields:
            found, value = _at(row, path)
            verdict = self._said(".".join(path), value) if found else None
            if verdict is not None:
                yield ".".join(path), value, verdict
        for path_text, value, judge in _judged(row, names, ""):
            verdict = self._said(path_text, value)
            yield path_text, value, judge(value) if verdict is None else verdict

    def _said(self, path: str, value: Any) -> Verdict | None:
        return self._told.get((path, as_text(value))) or self._told.get((path, "*"))


def as_text(value: Any) -> str:
    """A value as text, as in ``done_if``."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def describe(path: str, value: Any) -> str:
    """A sign as text, for messages."""
    return f"{path}: {keys.shorten(value)}"


def _judged(
    row: Mapping[str, Any], names: Iterable[str], above: str
) -> Iterator[tuple[str, Any, Callable[[Any], Verdict]]]:
    judges = _IN_RESULT if above == "result." else _JUDGES
    for name in names:
        if name not in row:
            continue
        value = row[name]
        if name in _ENVELOPES and isinstance(value, dict):
            yield from _judged(value, value, f"{above}{name}.")
        elif (judge := judges.get(_plain(name))) is not None:
            yield f"{above}{name}", value, judge


def _at(row: Any, path: Sequence[str]) -> tuple[bool, Any]:
    for name in path:
        if not isinstance(row, dict) or name not in row:
            return False, None
        row = row[name]
    return True, row


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")
