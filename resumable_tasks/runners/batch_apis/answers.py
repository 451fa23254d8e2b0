"""The answers of a batch, in any order and possibly incomplete → rows and failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.errors import BadResult, UsageError
from resumable_tasks.items.keys import Key, shorten, shown
from resumable_tasks.runners.batch_apis.refusals import RequestFailed
from resumable_tasks.runners.outcome import ItemFailure
from resumable_tasks.runners.submitted.protocol import NotReady, Undone

_TOKENS_IN = (
    *("prompt_tokens", "input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"),
)
_TOKENS_OUT = ("completion_tokens", "output_tokens")


class Answers:
    """The results of a submission, collected line by line.

    An answer takes precedence over an error of the same request, and the first of each counts. A
    request without a line was not handled, whatever the provider's counts say.
    """

    def __init__(
        self, keys: Sequence[Key], per: int, row: Callable[[Any, Any], Any], token: str | None
    ) -> None:
        self._groups = [list(keys[at : at + per]) for at in range(0, len(keys), per)]
        self._per, self._row, self._token = per, row, token
        self._rows: list[Any] = []
        self._taken: set[int] = set()
        self._other: dict[int, RequestFailed | Undone | Exception] = {}
        self._broken: list[Exception] = []
        self.lines = self.strange = 0
        self.tokens_in = self.tokens_out = 0

    @property
    def answered(self) -> int:
        """The number of requests with an answer."""
        return len(self._taken)

    @property
    def requests(self) -> int:
        """The number of all requests of the submission."""
        return len(self._groups)

    def number_of(self, custom_id: Any) -> int | None:
        """Return the number of a request; None if it does not belong to this submission."""
        self.lines += 1
        token, _, number = str(custom_id).rpartition("-")
        if self._token is None:  # a person attached the batch by its id alone
            self._token = token
        if token != self._token or not number.isdecimal() or int(number) >= self.requests:
            self.strange += 1
            return None
        return int(number)

    def take(self, number: int, answer: Any) -> None:
        """Take the answer to a request. If `row` raises, only the items of the request fail."""
        if number in self._taken:
            return
        self._taken.add(number)
        self._count(answer)
        keys = self._groups[number]
        try:
            self._rows += self.rows_of(keys, answer)
        except Exception as error:  # noqa: BLE001 - becomes the failure of these items
            if not isinstance(error, BadResult):
                self._broken.append(error)
            self._rows += [ItemFailure(key, error) for key in keys]

    def rows_of(self, keys: Sequence[Key], answer: Any) -> list[Any]:
        """Return the rows that `row` makes of an answer, and a failure for each other item."""
        made = self._row(keys[0] if self._per == 1 else list(keys), answer)
        rows = list(made) if isinstance(made, (list, tuple)) else [made]
        if made is None or (not rows and self._per == 1):
            raise BadResult(
                f"row() returned {made!r} for {shown(keys[0])}",
                remedy="Return a row, or raise BadResult for an unusable answer",
            )
        return self._of_keys(keys, rows) if self._per > 1 else rows

    def _of_keys(self, keys: Sequence[Key], rows: list[Any]) -> list[Any]:
        """Return the rows that have a key of their request, and a failure for each other key.

        Models that write the keys themselves may invent some.
        """
        if not all(isinstance(row, (Mapping, ItemFailure)) for row in rows):
            return rows  # matched to the items later, which raises if that is impossible
        held = [_values(row) for row in rows]
        kept = [
            row
            for row, values in zip(rows, held, strict=True)
            if any(_stands_in(key, values) for key in keys)
        ]
        if rows and not kept:
            self._broken.append(BadResult(f"row() returned {shorten(rows[0])}: {_NO_KEY}"))
        elif len(kept) < len(rows):
            log.warning("row() returned rows without a key of their request: left out")
        left = [key for key in keys if not any(_stands_in(key, values) for values in held)]
        return kept + [ItemFailure(key, BadResult(_LEFT_OUT)) for key in left]

    def fail(self, number: int, error: Exception) -> None:
        """Fail a request because of its content."""
        self._other.setdefault(number, error)

    def refused(self, number: int, error: RequestFailed) -> None:
        """Take the error of a request: its own, or one of the account or the service."""
        if error.outage:
            self._other.setdefault(number, Undone(0, error, outage=True))
        else:
            self.fail(number, error)

    def undone(self, number: int, why: str) -> None:
        """Note that a request was not handled."""
        self._other.setdefault(number, Undone(0, why))

    def results(self, missing: str = "no line") -> list[Any]:
        """Return the rows, failures and undone items, with their keys.

        Raises the first error of `row` if it failed for more than half of the answers: a bug in the
        program must not turn paid answers into failures.
        """
        if self.lines and self.strange == self.lines:
            raise UsageError(
                "no line of this batch belongs to the submission",
                remedy="Attach the batch that has its token, or withdraw the submission",
            )
        if len(self._broken) * 2 > self.answered:
            first = self._broken[0]
            first.add_note(
                f"row() failed for {len(self._broken)} of {self.answered} answers. They stay with "
                "the provider: fix row() and run again. For an unusable answer, raise BadResult"
            )
            raise first
        return self._rows + [
            result
            for number, keys in enumerate(self._groups)
            if number not in self._taken
            for result in _without(keys, self._other.get(number), missing)
        ]

    def _count(self, answer: Any) -> None:
        usage = answer.get("usage") if isinstance(answer, Mapping) else None
        if isinstance(usage, Mapping):
            self.tokens_in += _sum(usage, _TOKENS_IN)
            self.tokens_out += _sum(usage, _TOKENS_OUT)


def parsed(line: bytes, batch: str) -> Any:
    """Parse a line of a results file. Raises `NotReady` if it is cut off: the file remains."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise NotReady(
            f"the results of batch {batch} contain a line that is not JSON: {line[:80]!r}"
        )
    return found


def _without(keys: Sequence[Key], what: Any, missing: str) -> list[Any]:
    """Return the results for the items of a request without an answer."""
    if isinstance(what, Exception):
        return [ItemFailure(key, what) for key in keys]
    if what is None:
        return [Undone(key, missing) for key in keys]
    return [Undone(key, what.error, what.outage) for key in keys]


_NO_KEY = "it has none of the keys given to row()"
_LEFT_OUT = "row() made no row for this item of the request"


def _values(row: Any) -> list[Any]:
    """Return the values of a row that may be a key or a part of one."""
    if isinstance(row, ItemFailure):
        return [row.key]
    found = [tuple(value) if isinstance(value, list) else value for value in row.values()]
    return [value for value in found if isinstance(value, (str, int, tuple))]


def _stands_in(key: Key, values: Sequence[Any]) -> bool:
    return key in values or (isinstance(key, tuple) and all(part in values for part in key))


def _sum(usage: Mapping[str, Any], names: Sequence[str]) -> int:
    return sum(usage[name] for name in names if type(usage.get(name)) is int)
